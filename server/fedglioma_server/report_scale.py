"""What the report says of intensities: the scale that all images lie on, who decided it, who was doubtful."""

from fedglioma.case import CHANNELS
from fedglioma.noise import DELTA
from fedglioma.scale import FEWEST_CASES, PERCENTILES, Scale
from fedglioma_server import report_text as words
from fedglioma_server.intensities import words_of
from fedglioma_server.records import RunRecord
from fedglioma_server.report_tables import Cell, Row, Table


def lead(run: RunRecord) -> str:
    """Return how intensities were made comparable, in a sentence."""
    if run.scale is not None and run.scale_from_model:
        return (
            f"Intensities of all hospitals lie on the scale ({run.scale.id[:12]}) of the model that the run "
            "started from."
        )
    if run.scale is not None:
        return f"Intensities of all hospitals lie on one scale ({run.scale.id[:12]})."
    if run.settings.common_scale:
        return "The hospitals had not yet agreed on an intensity scale."
    return "Each case keeps an intensity scale of its own, mean 0 and standard deviation 1 in the brain."


def scale_table(run: RunRecord, scale: Scale) -> Table:
    """Return where the landmarks of each sequence lie, and how many hospitals and cases decided it."""
    rows = []
    for modality in CHANNELS:
        nobody = not scale.sites[modality]
        cells = (
            Cell(words.MODALITY_TITLES[modality], head=True, number=False),
            *(Cell(words.decimal(value, 1)) for value in scale.landmarks[modality]),
            Cell(words.DASH if nobody else words.integer(scale.sites[modality])),
            Cell(words.DASH if nobody else words.integer(scale.cases[modality])),
        )
        rows.append(Row(cells, faint=nobody))
    return Table(
        "Intensity scale",
        ("Sequence", *(f"{percentile:g} %" for percentile in PERCENTILES), "Hospitals", "Cases, about"),
        tuple(rows),
        over=(("", 1), ("Percentile of the brain lies at", len(PERCENTILES)), ("Decided by", 2)),
        remark=" ".join([f"Scale {scale.id}.", *_remarks(run, scale)]),
    )


def _remarks(run: RunRecord, scale: Scale) -> list[str]:
    said = []
    if run.scale_from_model:
        said.append("It is that of the model that the run started from, and so are the hospitals behind it.")
    if any(not sites for sites in scale.sites.values()):
        said.append(
            f"Grey: no hospital has {FEWEST_CASES} cases of the sequence; its landmarks are the usual ones."
        )
    said += [f"{words.listing(doubt.sites)}: {words_of(doubt)}." for doubt in run.scale_doubts]
    noisy = {
        name: data.landmark_epsilon
        for name, data in sorted(run.sites.items())
        if data.landmark_epsilon is not None
    }
    if noisy:
        told = words.listing([f"{name} (epsilon {epsilon:g})" for name, epsilon in noisy.items()])
        said.append(
            f"With noise on its landmarks: {told}, delta {DELTA:g}; it protects patients in these sums alone."
        )
    return said
