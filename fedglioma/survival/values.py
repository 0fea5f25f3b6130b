"""What the words in a clinical table mean: numbers, yes or no, mutant or wild-type, WHO grades."""

import math
import re
from enum import StrEnum

from fedglioma.case import UNKNOWN

MISSING = frozenset(
    {
        "",
        "-",
        "--",
        ".",
        "?",
        "-1",
        "-1.0",
        "n/a",
        "na",
        "n.a.",
        "nan",
        "nd",
        "none",
        "null",
        "unk",
        "unknown",
    }
    | {"indeterminate", "missing", "not available", "not done", "not evaluated", "not reported", "not tested"}
)
_YES = frozenset(
    {"1", "true", "yes", "y", "+", "positive", "pos", "present", "altered"}
    | {"mutant", "mut", "mutated", "mutation", "loss", "lost", "expression loss"}
    | {"codeleted", "codel", "codeletion", "deleted", "methylated"}
)
_NO = frozenset(
    {"0", "false", "no", "n", "negative", "neg", "absent", "unaltered", "not altered"}
    | {"wildtype", "wild type", "wt", "not mutated", "unmutated", "retained", "expressed"}
    | {"intact", "noncodeleted", "noncodel", "non codeleted", "non codel", "not codeleted", "not deleted"}
    | {"unmethylated", "not methylated"}
)
_DIED = frozenset({"1", "true", "yes", "y", "dead", "died", "deceased", "death", "1:deceased", "event"})
_ALIVE = frozenset({"0", "false", "no", "n", "alive", "living", "censored", "0:living", "no event"})
_VARIANT = re.compile(r"(idh[12]?\s*)?(p\.)?r(100|132|140|172)[a-z]")
_GRADE = re.compile(
    r"(?:(?:who|cns|grade|g)[\s_.:-]*(?:grade|cns|2021)?[\s_.:-]*)*([1-4](?:\.0+)?|i{1,3}|iv)\s*"
)
_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4}
_LOWER_GRADE = frozenset(
    {"lgg", "tcga lgg", "lower grade", "low grade", "lower grade glioma", "low grade glioma"}
    | {"brain lower grade glioma"}
)
_GLIOBLASTOMA = frozenset({"gbm", "tcga gbm", "gb", "glioblastoma", "glioblastoma multiforme"})


class Group(StrEnum):
    """Which patients a comparison is made among; ``mixed`` is all of them."""

    LOWER_GRADE = "lower-grade"
    GLIOBLASTOMA = "glioblastoma"
    MIXED = "mixed"


def is_missing(cell: str) -> bool:
    """Whether a cell says that nothing is known; ``[Not Available]`` and ``-1`` count as that."""
    return _plain(cell) in MISSING


def number(cell: str) -> float | None:
    """Return a finite number, None where the cell is none."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def binary(cell: str) -> int | None:
    """Return 1 for mutant, codeleted, methylated or yes; 0 for the opposite; ``UNKNOWN`` where missing.

    None where the word is not understood. Loss of ATRX expression counts as mutant, as in the WHO
    classification; a named IDH variant such as ``R132H`` does too.
    """
    if is_missing(cell):
        return UNKNOWN
    word = _word(cell)
    bare = re.sub(r"^(idh[12]?|atrx|1p/?19q|mgmt)\s*", "", word) or word
    if {word, bare} & _YES or _VARIANT.fullmatch(word):
        return 1
    return 0 if {word, bare} & _NO else None


def died(cell: str) -> int | None:
    """Return 1 for a patient who died, 0 for a censored one, ``UNKNOWN`` where missing, else None."""
    if is_missing(cell):
        return UNKNOWN
    word = _whole(_plain(cell))
    return 1 if word in _DIED else 0 if word in _ALIVE else None


def grade(cell: str) -> int | None:
    """Return a WHO grade from ``3``, ``III``, ``WHO 3``, ``Grade III`` or ``G3``; None otherwise."""
    match = _GRADE.fullmatch(_plain(cell))
    if match is None:
        return None
    found = match[1]
    return _ROMAN.get(found) or int(float(found))


def group(cell: str) -> Group | None:
    """Return lower-grade or glioblastoma from a cohort's name or a WHO grade; None where neither."""
    word = re.sub(r"[\s_-]+", " ", _plain(cell))
    if word in _LOWER_GRADE:
        return Group.LOWER_GRADE
    if word in _GLIOBLASTOMA:
        return Group.GLIOBLASTOMA
    return {2: Group.LOWER_GRADE, 3: Group.LOWER_GRADE, 4: Group.GLIOBLASTOMA}.get(grade(cell) or 0)


def _plain(cell: str) -> str:
    return cell.strip().strip("[]").strip().casefold()


def _word(cell: str) -> str:
    """Return a marker's value without spelling variants: hyphens, ``co-deleted``, ``(NOS)``, ``1.0``."""
    word = _plain(cell).replace("(nos)", "").strip()
    word = word.replace("co-del", "codel").replace("co del", "codel")
    word = re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", word)
    return "wildtype" if word == "wild type" else _whole(word)


def _whole(word: str) -> str:
    return re.sub(r"^(\d+)\.0+$", r"\1", word)
