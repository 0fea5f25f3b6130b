"""How well a hospital's scanners agree in brightness: raw, after the z-score, on the consortium's scale.

A scanner stands for itself by the median over its patients; figures are the largest deviation of a scanner
from the mean of all. Relative to that mean it is IIV (inter-site intensity variation), which a z-score
has none of, as its mean is 0 by definition; relative to the range from the 10th to the 80th percentile it
compares all three.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np

from fedglioma.case import CHANNELS, Frozen, Modality
from fedglioma.data.cache import Record
from fedglioma.data.normalize import HALF_RANGE, MIDDLE, onto_scale
from fedglioma.scale import TOP, Landmarks, Scale

FEWEST_CASES: Final = 5
"""Patients of a scanner, below which one of them decides its median."""
WELL_ABOVE_ZERO: Final = 25.0

Tissue = Literal["brain", "white matter"]


class Agreement(Frozen):
    """One modality and tissue; shares, 0.05 is 5 %. None where it cannot be told.

    ``raw``, ``zscore``, ``common`` are of the brain's range; ``iiv_raw`` and ``iiv_common`` of the mean.
    White matter is the brighter half of T1. The median of the brain was used to fit the common scale, so that
    row says little of it.
    """

    modality: Modality
    tissue: Tissue
    scanners: int
    cases: int
    raw: float | None
    zscore: float | None
    common: float | None
    iiv_raw: float | None
    iiv_common: float | None


def agreement(
    records: Sequence[Record], scanners: Sequence[str | None], scale: Scale | None = None
) -> tuple[Agreement, ...]:
    """Return the agreement of scanners with ``FEWEST_CASES`` cases each; empty with fewer than two of them.

    Parameters
    ----------
    records, scanners
        Of the cases, in one order; cases without a scanner's name are left out.
    scale : Scale, optional
        The consortium's.
    """
    found = []
    for modality in CHANNELS:
        groups: dict[str, list[Record]] = defaultdict(list)
        for record, scanner in zip(records, scanners, strict=True):
            if scanner and record.quality and modality in record.quality.modalities:
                groups[scanner].append(record)
        large = {name: group for name, group in groups.items() if len(group) >= FEWEST_CASES}
        if len(large) > 1:
            found += [_one(modality, tissue, large, scale) for tissue in ("brain", "white matter")]
    return tuple(found)


def _one(
    modality: Modality, tissue: str, groups: Mapping[str, Sequence[Record]], scale: Scale | None
) -> Agreement:
    told = {
        name: [values for record in group if (values := _values(record, modality, tissue, scale))]
        for name, group in groups.items()
    }
    columns = {
        way: {name: [values[way] for values in group if way in values] for name, group in told.items()}
        for way in ("raw", "zscore", "common")
    }
    far = {way: _deviation(medians) for way, medians in columns.items()}
    spans = {
        "raw": _mean(
            [r.quality.modalities[modality].raw_span for g in groups.values() for r in g if r.quality]
        ),
        "zscore": _mean(
            [r.percentiles[modality][-1] - r.percentiles[modality][0] for g in groups.values() for r in g]
        ),
        "common": TOP,
    }
    shares = {
        way: None if found is None or not spans[way] > 0 else round(found[0] / spans[way], 4)
        for way, found in far.items()
    }
    return Agreement(
        modality=modality,
        tissue="brain" if tissue == "brain" else "white matter",
        scanners=len(groups),
        cases=sum(map(len, groups.values())),
        raw=shares["raw"],
        zscore=shares["zscore"],
        common=shares["common"],
        iiv_raw=_relative(far["raw"], above=0.0),
        iiv_common=_relative(far["common"], above=WELL_ABOVE_ZERO),
    )


def _values(record: Record, modality: Modality, tissue: str, scale: Scale | None) -> dict[str, float]:
    """Return a case's median in a tissue: of the file's values, of z-scores, on the scale of 0 to 100."""
    if record.quality is None:
        return {}
    measures, own = record.quality.modalities[modality], record.percentiles[modality]
    raw = measures.raw if tissue == "brain" else measures.white_raw
    middle = own[2] if tissue == "brain" else measures.white
    if raw is None or middle is None:
        return {}
    values = {"raw": raw, "zscore": middle}
    if scale is not None:
        values["common"] = _moved(middle, own, scale.landmarks[modality])
    return values


def _moved(value: float, own: Landmarks, common: Landmarks) -> float:
    # A map that only rises takes a median to the median; 0 would count as outside the brain.
    one = np.array([value or 1e-9], np.float32)
    return float(onto_scale(one, own, common)[0]) * HALF_RANGE + MIDDLE


def _deviation(groups: Mapping[str, Sequence[float]]) -> tuple[float, float] | None:
    """Return the largest deviation of a group's median from the mean of medians, and that mean."""
    medians = [float(np.median(values)) for values in groups.values() if values]
    if len(medians) < len(groups):
        return None
    mean = float(np.mean(medians))
    return max(abs(median - mean) for median in medians), mean


def _relative(found: tuple[float, float] | None, *, above: float) -> float | None:
    return None if found is None or not found[1] > above else round(found[0] / found[1], 4)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
