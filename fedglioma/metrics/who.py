"""The WHO CNS5 class that three markers imply, and how often it was predicted rightly.

The class is what the markers alone allow; histology, grade and further markers (TERT promoter, EGFR,
chromosomes 7 and 10, CDKN2A/B, H3) are not looked at, so it is no diagnosis.

References
----------
WHO Classification of Tumours, Central Nervous System, 5th edition (2021); Louis et al. (2021),
Neuro-Oncology 23(8), 1231-1251; cIMPACT-NOW update 2, Louis et al. (2018), Acta Neuropathologica
135(4), 639-642 (an IDH-mutant glioma with ATRX loss is astrocytic without a 1p/19q test); cIMPACT-NOW
update 3, Brat et al. (2018), Acta Neuropathologica 136(5), 805-810 (IDH-wild-type, grade 4).
"""

from enum import StrEnum

import numpy as np
from pydantic import FiniteFloat

from fedglioma.case import UNKNOWN, Frozen
from fedglioma.errors import DataError
from fedglioma.metrics.bootstrap import RESAMPLES, Measure, bootstrap
from fedglioma.metrics.genotype import mean_statistic
from fedglioma.metrics.predictions import Predictions


class WhoClass(StrEnum):
    """What IDH, ATRX and 1p/19q together say; the value is the short code of tables."""

    OLIGODENDROGLIOMA = "oligodendroglioma"
    ASTROCYTOMA = "astrocytoma"
    IDH_WILDTYPE = "idh-wildtype"
    CONTRADICTORY = "contradictory"
    UNDETERMINED = "undetermined"


WHO_TITLES: dict[WhoClass, str] = {
    WhoClass.OLIGODENDROGLIOMA: "Oligodendroglioma, IDH-mutant and 1p/19q-codeleted",
    WhoClass.ASTROCYTOMA: "Astrocytoma, IDH-mutant",
    WhoClass.IDH_WILDTYPE: (
        "IDH-wild-type diffuse glioma (glioblastoma by WHO CNS5 when microvascular proliferation, necrosis, "
        "TERT promoter mutation, EGFR amplification or +7/-10 is found)"
    ),
    WhoClass.CONTRADICTORY: "Contradictory markers (1p/19q codeletion with wild-type IDH or mutant ATRX)",
    WhoClass.UNDETERMINED: "Undetermined: a deciding marker is unknown",
}

CLASSES = (WhoClass.OLIGODENDROGLIOMA, WhoClass.ASTROCYTOMA, WhoClass.IDH_WILDTYPE)
"""The three classes a patient can have; the other two members say why there is none."""


class WhoTable(Frozen):
    """Known against predicted class of a set of cases.

    ``counts[known][predicted]`` has every class in both places. ``agreement`` is the share of the
    ``compared`` cases, those whose known markers give one of the three classes, that were predicted
    right; a contradictory prediction is wrong. ``majority`` is that of always naming the most frequent
    class. Contradictions are counted, never repaired. ``withheld``: of a copy that is passed on, the counts
    tell only on which side of the small-cell limit they lie (``small_cells.py``).
    """

    counts: dict[WhoClass, dict[WhoClass, int]]
    compared: int
    agreement: Measure
    majority: Measure
    contradictory_labels: int
    contradictory_predictions: int
    contradiction_rate: FiniteFloat | None
    withheld: bool = False


def who_class(idh: int, atrx: int, codel: int) -> WhoClass:
    """Return the class of one patient from labels 0, 1 or ``UNKNOWN``.

    ==========  ==========  ==============  ==================
    IDH         1p/19q      ATRX            class
    ==========  ==========  ==============  ==================
    mutant      codeleted   not mutant      oligodendroglioma
    mutant      intact      any             astrocytoma
    mutant      unknown     mutant          astrocytoma
    wild-type   not codel.  any             idh-wildtype
    wild-type   codeleted   any             contradictory
    any         codeleted   mutant          contradictory
    ==========  ==========  ==============  ==================

    Anything else is undetermined.

    Raises
    ------
    DataError
        A label is not 0, 1 or ``UNKNOWN``.
    """
    for name, label in (("idh", idh), ("atrx", atrx), ("codel_1p19q", codel)):
        if label not in (UNKNOWN, 0, 1):
            raise DataError(f"{name}={label}: a label is 0, 1 or {UNKNOWN} (unknown)")
    if codel == 1 and (idh == 0 or atrx == 1):
        return WhoClass.CONTRADICTORY
    if idh == 0:
        return WhoClass.IDH_WILDTYPE
    if idh == 1 and codel == 1:
        return WhoClass.OLIGODENDROGLIOMA
    if idh == 1 and (codel == 0 or atrx == 1):
        return WhoClass.ASTROCYTOMA
    return WhoClass.UNDETERMINED


def who_table(predictions: Predictions, *, resamples: int = RESAMPLES, seed: int = 0) -> WhoTable:
    """Return how the predicted classes compare with the known ones, intervals by patient."""
    known = _classes(predictions.labels)
    predicted = _classes(predictions.calls())
    counts = {row: dict.fromkeys(WhoClass, 0) for row in WhoClass}
    for row, column in zip(known, predicted, strict=True):
        counts[row][column] += 1
    compared = np.array([k in CLASSES for k in known], dtype=bool)
    right = np.array([k is p for k, p in zip(known, predicted, strict=True)], dtype=np.float64)
    frequent = max(CLASSES, key=known.count)
    usual = np.array([k is frequent for k in known], dtype=np.float64)
    undefined = "no case has the markers that decide its class"
    everyone = np.ones(int(compared.sum()), dtype=bool)
    measures = bootstrap(
        {
            "agreement": mean_statistic(right[compared], everyone, undefined),
            "majority": mean_statistic(usual[compared], everyone, undefined),
        },
        predictions.patients[compared],
        resamples=resamples,
        seed=seed,
    )
    contradictory = predicted.count(WhoClass.CONTRADICTORY)
    return WhoTable(
        counts=counts,
        compared=int(compared.sum()),
        contradictory_labels=known.count(WhoClass.CONTRADICTORY),
        contradictory_predictions=contradictory,
        contradiction_rate=contradictory / len(predicted) if predicted else None,
        **measures,
    )


def _classes(labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> list[WhoClass]:
    return [who_class(int(idh), int(atrx), int(codel)) for idh, atrx, codel in labels]
