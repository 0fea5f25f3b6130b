"""The model card: what anybody must know before the released model is used, README.md beside the weights.

Its items follow TRIPOD+AI (Collins et al. 2024, BMJ 385, e078378) and CLAIM (Tejani et al. 2024, Radiology:
Artificial Intelligence 6(4), e240300), in short. Whatever a run does not know is said to be unknown.
"""

from pathlib import Path
from typing import Final

from fedglioma.case import CHANNELS, GENE_TITLES, GENES, Task
from fedglioma.config.run import RunConfig
from fedglioma.counts import shown
from fedglioma.metrics.small_cells import passed_on
from fedglioma.metrics.tables import Evaluation
from fedglioma_server import card_tables as tables
from fedglioma_server import card_words as words
from fedglioma_server.card_tables import plain
from fedglioma_server.network_words import what_it_reads
from fedglioma_server.records import RoundRecord, RunRecord, write_text
from fedglioma_server.report_headline import SIMULATED
from fedglioma_server.report_text import listing

CARD: Final = """\
---
library_name: monai
license: other
license_name: decided-by-the-consortium
pipeline_tag: {pipeline}
tags:
- monai
- medical
- mri
- brain
- glioma
- federated-learning
---
# {title}

**Research use only. Not a medical device. Not for diagnosis or treatment.**{synthetic}

{network}

## Intended use
{intended}

## Input
Four channels, in this order: {channels}. {preparation}

The network is given {reading}.

## Output
{output}

## Training
{training}

Counts as the sites gave them: cases are rounded up to a multiple of the site's small-cell limit, smaller
cells are suppressed (`<5`), here and in the held-out result. 0 is wild-type or intact, 1 mutant or codeleted.

{sites}

Training cases by the sequences that they have:

{sequences}

## Held-out result (split `{split}`, {cases} cases of {patients} patients)
{results}

## Privacy
{privacy}

## Limits and known failures
{limits}

## Reporting items (TRIPOD+AI, CLAIM)
{items}

## Files
`model.safetensors` holds the shared tensors by name (`model.` the network, `loss.` the learned task
weights), `config.json` how to build it and the digests of both. No file is a pickle. Load with
`fedglioma.training.released.load_model(folder)`, measure with `fedglioma-server evaluate`, and write a MONAI
bundle with `fedglioma-server bundle`.
"""


def write_card(
    folder: Path,
    record: RunRecord,
    chosen: RoundRecord,
    evaluation: Evaluation,
    privacy: str,
    rounds_done: int | None = None,
) -> None:
    """Write the model card, README.md; ``rounds_done`` is less than planned where the run ended early."""
    done = record.settings.rounds if rounds_done is None else rounds_done
    write_text(folder / "README.md", card_text(record, chosen, evaluation, privacy, done))


def card_text(
    record: RunRecord, chosen: RoundRecord, evaluation: Evaluation, privacy: str, rounds_done: int
) -> str:
    """Return the card of a run's selected model."""
    settings, evaluation = record.settings, passed_on(evaluation)
    synthetic = (
        "\n\n**Trained on SYNTHETIC patients: made-up images, no clinical evidence of any kind.**"
        if record.synthetic
        else ""
    )
    return CARD.format(
        pipeline="image-classification" if settings.genes else "image-segmentation",
        title=f"fedglioma model of run {plain(record.run_id)}",
        synthetic=synthetic,
        network=words.network_text(record),
        intended=intended_use(settings),
        channels=", ".join(m.value for m in CHANNELS),
        preparation=words.preparation_text(record),
        reading=words.reading_text(settings),
        output=words.output_text(settings),
        training=words.training_text(record, chosen, rounds_done),
        sites=tables.sites_text(record),
        sequences=tables.sequences_text(record),
        split=evaluation.split,
        cases=shown(evaluation.n_cases),
        patients=shown(evaluation.n_patients),
        results=held_out_text(evaluation),
        privacy=privacy,
        limits="\n".join(f"- {line}" for line in limits(record, evaluation)),
        items=items_text(record, evaluation),
    )


def intended_use(settings: RunConfig) -> str:
    """Return who may use the model for what."""
    return (
        f"Research on adults with a diffuse glioma, imaged before surgery: a network that "
        f"{what_it_reads(settings)}, to be studied, compared or trained on, on data whose holders "
        "agree. It is not for decisions about a patient, not for screening, and not for other diseases: it "
        "gives an answer for any brain."
    )


def held_out_text(evaluation: Evaluation) -> str:
    """Return every table of the held-out patients, the caution after them."""
    parts = []
    if evaluation.overall:
        parts += [
            tables.results_text(evaluation),
            tables.groups_text(evaluation.by_site, "site"),
            tables.groups_text(evaluation.by_modalities, "sequences"),
        ]
    if evaluation.who is not None:
        agreement = tables.measure_text(evaluation.who.agreement)
        parts.append(
            f"WHO CNS5 class from the three markers: {agreement} agree, of "
            f"{shown(evaluation.who.compared)} cases in which the known markers give one."
        )
    if evaluation.segmentation is not None:
        parts += ["Outline of the whole tumour:", tables.outline_text(evaluation)]
    parts.append(
        f"Intervals are 95 % by bootstrap over patients ({evaluation.resamples} resamples); a dash is "
        "undefined."
    )
    if evaluation.caution:
        parts.append(f"**{evaluation.caution}**")
    return "\n\n".join(parts)


def limits(record: RunRecord, evaluation: Evaluation) -> list[str]:
    """Return what is known to fail or was never tried."""
    settings, said = record.settings, []
    if record.synthetic:
        said.append("Made-up patients: it knows the drawing program, not a disease.")
    if evaluation.caution:
        said.append(evaluation.caution)
    unasked = [GENE_TITLES[gene] for gene in GENES if gene not in settings.genes]
    if unasked:
        said.append(f"It says nothing of {listing(unasked)}.")
    if Task.SEGMENTATION in settings.tasks:
        said.append(
            "One outline of the whole tumour; necrosis, oedema and enhancing tumour are not told apart."
        )
    if settings.targets == "random":
        said.append("Its outline was trained on noise and must not be looked at.")
    always = tables.never_seen(record)
    if always:
        said.append(
            f"No training case lacked {listing(always)}: what the network says without is a guess, though it "
            "takes such cases."
        )
    said += [
        "Patients after surgery or treatment, children, metastases and other tumours were not looked for and "
        "not kept out by anything but the cohorts' own choice.",
        "Where no brain can be found, or sequences do not lie over each other, a case is refused; where the "
        "brain is found wrongly, the network reads what it is given.",
        "Scanners and protocols other than the sites' may shift what it says; check it on own labelled cases "
        "first (`fedglioma-server evaluate`).",
    ]
    if evaluation.by_site and set(evaluation.by_site) <= set(record.sites):
        said.append("Every held-out patient is of a hospital that trained, too; no other was tried.")
    if record.linkage is not None and record.linkage.pairs:
        pairs = listing([" and ".join(map(plain, pair.sites)) for pair in record.linkage.pairs])
        said.append(f"Some patients seem to be at two sites: {pairs}.")
    said += [record.frozen_words] * bool(record.frozen_words)
    if record.scale_doubts:
        doubted = sorted({plain(site) for doubt in record.scale_doubts for site in doubt.sites})
        said.append(f"Intensities of {listing(doubted)} lay apart from the others'.")
    return said


def items_text(record: RunRecord, evaluation: Evaluation) -> str:
    """Return the reporting items with what the run knows of each."""
    settings = record.settings
    simulated = "simulated on one machine" if record.engine in SIMULATED else "at the sites"
    cohorts = listing([plain(name) for name in record.cohorts]) or "not on record"
    rows = [
        ("1 title", "development and internal evaluation of a deep-learning prediction model from MRI"),
        ("5 data", f"cohorts {cohorts}; dates of examination are not collected"),
        (
            "6 participants",
            f"{len(record.sites)} sites, trained {simulated}; eligibility is each cohort's own",
        ),
        ("7 preparation", "the same program at every site; see Input"),
        ("8 outcome", _outcome(settings)),
        ("9 predictors", f"MRI alone: {', '.join(m.value for m in CHANNELS)}; no age, sex or grade"),
        ("10 sample size", "all usable cases; not computed beforehand"),
        (
            "11 missing data",
            "unknown targets take no part in the loss or the tables; see Input for sequences",
        ),
        ("13 class imbalance", _imbalance(settings)),
        ("14 fairness", "results by site and by sequences; not by age, sex or ethnicity"),
        ("16 training and evaluation", "by patient: no patient trains, chooses and is reported on"),
        ("17 ethics, consent", "each site's own; purpose of this run: " + settings.purpose),
        ("18 open science", "settings in config.json, code is fedglioma; the data stay at the sites"),
        (
            "23 performance",
            f"{shown(evaluation.n_cases)} held-out cases, intervals by patient; see Held-out result",
        ),
        ("25-27 use", "no clinical use; see Intended use and Limits"),
    ]
    return tables.table(["item", "here"], rows)


def _imbalance(settings: RunConfig) -> str:
    if settings.genes and settings.model != "sgpnet":
        return "margins and weights of the loss follow from the class counts of the sites"
    return "no correction of class counts"


def _outcome(settings: RunConfig) -> str:
    parts = []
    if settings.genes:
        parts.append("marker status from each site's table; the assay is not collected")
    if Task.SEGMENTATION in settings.tasks:
        parts.append("outlines by each site's experts; who drew them is not collected")
    return "; ".join(parts)
