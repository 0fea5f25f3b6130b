"""Predictions as lines of a terminal: one patient each."""

from collections.abc import Sequence

from fedglioma.case import GENE_TITLES, GENES, Gene
from fedglioma.metrics.who import WhoClass
from fedglioma_client.predict_page import percent
from fedglioma_client.predict_result import Prediction

WHO_WORDS: dict[WhoClass, str] = {
    WhoClass.OLIGODENDROGLIOMA: "oligodendroglioma",
    WhoClass.ASTROCYTOMA: "astrocytoma, IDH-mutant",
    WhoClass.IDH_WILDTYPE: "IDH-wild-type glioma",
    WhoClass.CONTRADICTORY: "CONTRADICTORY markers",
    WhoClass.UNDETERMINED: "undetermined",
}
NOTHING = "-"


def table_of(predictions: Sequence[Prediction]) -> list[str]:
    """Return a header and a line for each patient; columns that no patient has are left out."""
    if not predictions:
        return []
    columns = [["patient", *(one.patient for one in predictions)]]
    asked = [gene for gene in GENES if any(gene in one.markers for one in predictions)]
    columns += [[GENE_TITLES[gene], *(_marker(one, gene) for one in predictions)] for gene in asked]
    if any(one.who for one in predictions):
        columns.append(
            ["WHO 2021 class", *(WHO_WORDS[one.who.code] if one.who else NOTHING for one in predictions)]
        )
    if any(one.tumour for one in predictions):
        columns.append(["tumour mL", *(_millilitres(one) for one in predictions)])
    if any(one.tumour and one.tumour.expert for one in predictions):
        columns.append(["Dice", *(_dice(one) for one in predictions)])
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _marker(one: Prediction, gene: Gene) -> str:
    found = one.markers.get(gene)
    return NOTHING if found is None else f"{found.word} ({percent(found.probability)} {found.changed})"


def _millilitres(one: Prediction) -> str:
    return NOTHING if one.tumour is None else f"{one.tumour.volume_ml:.1f}"


def _dice(one: Prediction) -> str:
    expert = one.tumour.expert if one.tumour else None
    return NOTHING if expert is None or expert.dice is None else f"{expert.dice:.2f}"
