"""The report on patients who seem to be at two hospitals: what to know first, a sentence, a table."""

from typing import Final

from fedglioma_server import report_text as words
from fedglioma_server.linkage import words_of
from fedglioma_server.records import Linkage
from fedglioma_server.report_tables import Cell, Row, Table

MOST_PAIRS: Final = 3
"""Pairs of hospitals that the first screen names; the table has all of them."""


def notices(linkage: Linkage | None) -> list[str]:
    """Return what a reader must know of patients at two hospitals before any figure."""
    pairs = [] if linkage is None else linkage.pairs
    said = [
        f"{words.listing(list(pair.sites))} seem to hold the same patients, {words_of(pair)}: these were "
        "trained on twice."
        for pair in pairs[:MOST_PAIRS]
    ]
    if len(pairs) > MOST_PAIRS:
        more = words.count(len(pairs) - MOST_PAIRS, "more pair")
        said.append(f"The same is so of {more} of hospitals, listed under Patients and data.")
    return said


def lead(linkage: Linkage) -> str:
    """Return which hospitals were compared, and whether anything was found."""
    if len(linkage.compared) < 2:
        return "No two hospitals share a linkage key, so nobody looked for patients who are at both."
    compared = words.listing(linkage.compared)
    if linkage.pairs:
        return f"{compared} were searched for patients who are at two of them; some were found."
    return f"{compared} were searched for patients who are at two of them; none was found."


def linkage_table(linkage: Linkage) -> Table:
    """Return which two hospitals seem to hold the same patients, and how many at least."""
    rows = tuple(
        Row(
            (
                *(Cell(site, head=True, number=False) for site in pair.sites),
                Cell(words_of(pair), number=False),
            )
        )
        for pair in linkage.pairs
    )
    return Table(
        "Patients at two hospitals",
        ("Hospital", "And", "Both have"),
        rows,
        words=frozenset({0, 1, 2}),
        remark="Found by keyed tags of equal images and equal national numbers. Nobody was left out: each "
        "hospital can name its own patients among them, and decides.",
    )
