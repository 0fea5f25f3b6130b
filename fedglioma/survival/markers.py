"""A column that divides patients into classes: a gene's status, a sex, a subtype."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import CLASS_TITLES, GENE_TITLES, UNKNOWN
from fedglioma.errors import ConfigError
from fedglioma.survival import values
from fedglioma.survival.columns import gene_of

IntArray = NDArray[np.int64]

MAX_CLASSES = 8


@dataclass(frozen=True)
class Marker:
    """One column that divides the patients: class titles and, per patient, which one or ``UNKNOWN``.

    ``codes`` (n,) indexes ``classes``; class 0 is the reference of hazard ratios. ``not_understood``
    counts the patients whose cell was neither a class nor missing, with an example.
    """

    column: str
    title: str
    classes: tuple[str, ...]
    codes: IntArray
    not_understood: int = 0
    example: str = ""


def read_marker(column: str, cells: Sequence[str], source: str) -> Marker:
    """Return a column's classes: two where its words are binary, else each word that occurs.

    Raises
    ------
    ConfigError
        The column has more than ``MAX_CLASSES`` different words, as a measurement or a name has.
    """
    gene = gene_of(column)
    codes = [values.binary(cell) for cell in cells]
    unread = [cell for cell, code in zip(cells, codes, strict=True) if code is None]
    if gene is None and unread:
        return _worded(column, cells, source)
    return Marker(
        column=column,
        title=column if gene is None else GENE_TITLES[gene],
        classes=_binary_titles(cells, codes) if gene is None else CLASS_TITLES[gene],
        codes=np.array([UNKNOWN if code is None else code for code in codes], dtype=np.int64),
        not_understood=len(unread),
        example=unread[0] if unread else "",
    )


def _binary_titles(cells: Sequence[str], codes: Sequence[int | None]) -> tuple[str, ...]:
    """Return the table's own words for the two classes; ``no`` and ``yes`` for bare numbers."""
    titles = ["no", "yes"]
    for code in (0, 1):
        words = [c for c, found in zip(cells, codes, strict=True) if found == code]
        if words and values.number(words[0]) is None:
            titles[code] = words[0]
    return tuple(titles)


def _worded(column: str, cells: Sequence[str], source: str) -> Marker:
    spelled: dict[str, str] = {}
    for cell in cells:
        if not values.is_missing(cell):
            spelled.setdefault(cell.casefold(), cell)
    order = sorted(spelled)
    if len(order) > MAX_CLASSES:
        raise ConfigError(
            f"{source}: {column} has {len(order)} different values, such as {spelled[order[0]]!r}: "
            f"compare a column with at most {MAX_CLASSES}, or put its values into classes first"
        )
    codes = [UNKNOWN if values.is_missing(cell) else order.index(cell.casefold()) for cell in cells]
    return Marker(
        column=column,
        title=column,
        classes=tuple(spelled[word] for word in order),
        codes=np.array(codes, dtype=np.int64),
    )
