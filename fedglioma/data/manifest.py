"""A cohort's table of patients: ``participants.tsv``, checked row by row.

What is wrong with a row costs as little as is safe. A wrong label or consent costs the patient, since
nobody knows what the rest of the row is worth as training truth; a wrong age, sex, grade, scanner or
follow-up costs that value, which becomes unknown and is warned about. A table that cannot be read at
all is a ``DataError``.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from pydantic import Field

from fedglioma.case import CLASS_TITLES, GENE_TITLES, GENES, UNKNOWN, Finding, Frozen, Gene, Genotype, Outcome
from fedglioma.data.smallfile import read_small
from fedglioma.errors import DataError
from fedglioma.pseudonym import plain_id
from fedglioma.words import quoted

T = TypeVar("T")

TABLE_NAME: Final = "participants.tsv"
ID_COLUMN: Final = "participant_id"
PURPOSES: Final = ("research", "clinical", "none")
WHOLE_COHORT: Final = ""
"""``Finding.patient`` of a finding that concerns the table and not one patient."""

_UNKNOWN_WORDS = frozenset({"", "n/a", "na", "nan", "unknown"})
_LABEL_WORDS = {
    Gene.IDH: {"wildtype": 0, "wt": 0, "mutant": 1, "mutated": 1, "mut": 1},
    Gene.ATRX: {"wildtype": 0, "wt": 0, "mutant": 1, "mutated": 1, "mut": 1},
    Gene.CODEL: {"intact": 0, "noncodeleted": 0, "noncodel": 0, "codeleted": 1, "codel": 1},
}
_GRADES = {"2": 2, "ii": 2, "3": 3, "iii": 3, "4": 4, "iv": 4}
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
_MAX_WORD = 64
_TABLE_BYTES: Final = 64 << 20
_LEAST_NUMBER = 6
_MAX_DAYS = 36525.0


class Participant(Frozen):
    """One row: a patient with what the hospital knows besides the images."""

    patient: str
    site: str
    genotype: Genotype = Genotype()
    grade: int | None = None
    age: float | None = None
    sex: str | None = None
    outcome: Outcome | None = None
    scanner: str | None = None
    field_strength_t: float | None = None
    purpose: str | None = None
    linkage_id: str | None = Field(default=None, exclude=True, repr=False)


@dataclass(frozen=True)
class Table:
    """The usable rows in the table's order, and what was found wrong with the others.

    ``refused`` has the id and the person's number of each row that forbids any use of the person's data.
    """

    participants: tuple[Participant, ...]
    exclusions: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    refused: tuple[tuple[str, str], ...] = field(default=(), repr=False)


class _Illegal(ValueError):
    """A value that its column does not allow; the text says which are allowed."""


def patient_key(name: str) -> str:
    """Return what two spellings of one patient share: no ``sub-``, no case, no outer spaces."""
    return bare_id(name).casefold()


def bare_id(name: str) -> str:
    """Return a participant's id without BIDS's ``sub-`` and outer spaces."""
    return name.strip().removeprefix("sub-")


def read_participants(path: Path, *, site: str | None = None) -> Table:
    """Return the rows of a ``participants.tsv`` and every finding about them.

    Parameters
    ----------
    path : Path
        A tab-separated UTF-8 file with one header line.
    site : str, optional
        Site of rows that name none; the name of the table's folder when not given.

    Raises
    ------
    DataError
        The file cannot be read, is no table, or lacks ``participant_id``.
    """
    columns, lines = _read_table(path)
    default_site = site or path.resolve().parent.name
    warnings = [
        Finding(
            patient=WHOLE_COHORT,
            site=default_site,
            code="no_column",
            message=f"{TABLE_NAME}: no column {gene.value}; {GENE_TITLES[gene]} is unknown for every patient",
        )
        for gene in GENES
        if gene.value not in columns
    ]
    rows: list[tuple[_Row, Participant | None]] = []
    seen: dict[str, int] = {}
    withheld: set[str] = set()
    refused: dict[str, int] = {}
    for number, line in lines:
        row = _Row(number, columns, line, default_site)
        participant = row.read()
        key = patient_key(row.patient)
        if row.patient != WHOLE_COHORT and (first := seen.setdefault(key, number)) != number:
            row.exclude(
                "duplicate", f"the patient is in row {first} too; one row per patient, only the first counts"
            )
            participant = None
        # A refusal counts from whichever row it stands in.
        if row.refuses:
            withheld.add(key)
            refused.setdefault(row.person, number)
        rows.append((row, participant))
    allowed: list[Participant] = []
    for row, participant in rows:
        if participant is None or patient_key(row.patient) in withheld:
            continue
        if row.person and row.person in refused:
            reason = f"row {refused[row.person]} is of the same person (linkage_id), whose purpose forbids it"
            row.exclude("consent", reason)
        else:
            allowed.append(participant)
    return Table(
        tuple(allowed),
        tuple(finding for row, _ in rows for finding in row.exclusions),
        (*warnings, *(finding for row, _ in rows for finding in row.warnings)),
        tuple((row.patient, row.person) for row, _ in rows if row.refuses),
    )


def _read_table(path: Path) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """Return the column names and the numbered rows, not yet looked into."""
    place = f"{path.parent.name}/{path.name}"
    try:
        text = read_small(path, _TABLE_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{place}: not found; a cohort needs this table, with at least the column {ID_COLUMN}"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start}); "
            "save the table as UTF-8, tab separated"
        ) from None
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror}); check the file") from None
    lines = [line.split("\t") for line in re.split(r"\r\n|\r|\n", text)]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if any(cell.strip() for cell in line)]
    if not numbered:
        raise DataError(f"{place}: empty; write a header line and one row per patient")
    columns = tuple(name.strip().lower() for name in numbered[0][1])
    if ID_COLUMN not in columns:
        hint = "; separate the columns by tabs" if len(columns) == 1 else ""
        raise DataError(f"{place}: no column {ID_COLUMN} in the header line{hint}")
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise DataError(f"{place}: column {twice[0]} stands twice in the header line; keep one")
    if len(numbered) == 1:
        raise DataError(f"{place}: no row below the header line; write one per patient")
    return columns, numbered[1:]


class _Row:
    """One line being read; remembers what was found wrong with it."""

    def __init__(self, number: int, columns: tuple[str, ...], cells: list[str], default_site: str) -> None:
        self.number = number
        self.fits = len(cells) == len(columns)
        self.width = (len(cells), len(columns))
        self.cells: Mapping[str, str] = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
        self.patient = bare_id(self.cells.get(ID_COLUMN, ""))
        self.site = default_site
        self.exclusions: list[Finding] = []
        self.warnings: list[Finding] = []

    def read(self) -> Participant | None:
        """Return the participant, or nothing when the row had to be excluded."""
        if not self._named():
            return None
        genotype = self._genotype()
        purpose = self._purpose()
        if self.exclusions:
            return None
        return Participant(
            patient=self.patient,
            site=self.site,
            genotype=genotype,
            grade=self._soft("grade", _grade),
            age=self._soft("age", _age),
            sex=self._soft("sex", _sex),
            outcome=self._outcome(),
            scanner=self._soft("scanner", _word),
            field_strength_t=self._soft("field_strength_t", _tesla),
            purpose=purpose,
            linkage_id=self._linkage_id(),
        )

    @property
    def person(self) -> str:
        """What all spellings of the person's number share; empty without one. It is never told."""
        text = self.cells.get("linkage_id", "")
        return plain_id(text) if _LEAST_NUMBER <= len(text) <= _MAX_WORD and text.isprintable() else ""

    @property
    def refuses(self) -> bool:
        """Whether the row, or another of the same person, forbids any use of the person's data."""
        return any(finding.code == "consent" for finding in self.exclusions)

    def exclude(self, code: str, reason: str) -> None:
        self.exclusions.append(self._finding(code, reason))

    def warn(self, code: str, reason: str) -> None:
        self.warnings.append(self._finding(code, reason))

    def _finding(self, code: str, reason: str) -> Finding:
        message = f"{TABLE_NAME} row {self.number}: {reason}"
        return Finding(patient=self.patient, site=self.site, code=code, message=message)

    def _named(self) -> bool:
        """Return whether the row can be tied to a patient and a site."""
        if not _is_name(self.patient):
            wrong, self.patient = self.patient, WHOLE_COHORT
            allowed = f"a name of at most {_MAX_WORD} printable characters without / and \\"
            self.exclude("patient_id", f"{ID_COLUMN} is {_shown(wrong)}; allowed is {allowed}")
        elif not self.fits:
            self.exclude(
                "row", f"has {self.width[0]} fields where the header has {self.width[1]}; check the tabs"
            )
        elif (site := self._soft("site", _site, excludes=True)) is not None:
            self.site = site
        return not self.exclusions

    def _genotype(self) -> Genotype:
        labels = {gene: self._label(gene) for gene in GENES}
        if labels[Gene.CODEL] == 1 and labels[Gene.IDH] == 0:
            self.warn(
                "genotype",
                "IDH wild-type with 1p/19q codeletion contradict each other; kept, check both assays",
            )
        if labels[Gene.CODEL] == 1 and labels[Gene.ATRX] == 1:
            self.warn(
                "genotype",
                "1p/19q codeletion with ATRX mutant contradict each other; kept, check both assays",
            )
        return Genotype(**{gene.value: label for gene, label in labels.items()})

    def _label(self, gene: Gene) -> int:
        def parse(text: str) -> int:
            word = re.sub(r"[-_ ]", "", text.lower())
            if _NUMBER.fullmatch(text) and float(text) in (0.0, 1.0):
                return int(float(text))
            if word in _LABEL_WORDS[gene]:
                return _LABEL_WORDS[gene][word]
            zero, one = CLASS_TITLES[gene]
            raise _Illegal(f"0 ({zero}), 1 ({one}), or n/a")

        label = self._soft(gene.value, parse, code="label", excludes=True)
        return UNKNOWN if label is None else label

    def _purpose(self) -> str | None:
        purpose = self._soft("purpose", _purpose, code="consent", excludes=True)
        if purpose == "none":
            self.exclude("consent", "purpose is 'none': the patient's data may not be used")
        return purpose

    def _linkage_id(self) -> str | None:
        text = self.cells.get("linkage_id", "")
        if self.person:
            return text
        if text.lower() in _UNKNOWN_WORDS or not plain_id(text):
            return None
        allowed = f"{_LEAST_NUMBER} to {_MAX_WORD} printable characters"
        self.warn("linkage_id", f"linkage_id is not a number of {allowed}; taken as unknown")
        return None

    def _outcome(self) -> Outcome | None:
        days = self._soft("os_days", _days, code="outcome")
        event = self._soft("os_event", _event, code="outcome")
        if days is not None and event is not None:
            return Outcome(os_days=days, os_event=event)
        told = any(finding.code == "outcome" for finding in self.warnings)
        if (days is None) != (event is None) and not told:
            self.warn(
                "outcome", "os_days and os_event are useful only together; follow-up is taken as unknown"
            )
        return None

    def _soft(
        self, column: str, parse: Callable[[str], T], *, code: str | None = None, excludes: bool = False
    ) -> T | None:
        """Return a column's value, or None when it is unknown or was found illegal."""
        text = self.cells.get(column, "")
        if text.lower() in _UNKNOWN_WORDS:
            return None
        try:
            return parse(text)
        except _Illegal as error:
            reason = f"{column} is {_shown(text)}; allowed is {error}"
            if excludes:
                self.exclude(code or column, f"{reason}; the patient is left out")
            else:
                self.warn(code or column, f"{reason}; taken as unknown")
            return None


def _shown(text: str) -> str:
    return quoted(text, _MAX_WORD)


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _MAX_WORD and text.isprintable() and not set(text) & set("/\\") and text[0] != "."


def _site(text: str) -> str:
    if not _is_name(text):
        raise _Illegal(f"a name of at most {_MAX_WORD} printable characters without / and \\")
    return text


def _word(text: str) -> str:
    if len(text) > _MAX_WORD or not text.isprintable():
        raise _Illegal(f"at most {_MAX_WORD} printable characters")
    return text


def _bounded(text: str, low: float, high: float, allowed: str) -> float:
    if not _NUMBER.fullmatch(text) or not low <= float(text) <= high:
        raise _Illegal(allowed)
    return float(text)


def _age(text: str) -> float:
    return _bounded(text, 0, 120, "years from 0 to 120, or n/a")


def _days(text: str) -> float:
    return _bounded(text, 0, _MAX_DAYS, "days since diagnosis, 0 or more, or n/a")


def _tesla(text: str) -> float:
    return _bounded(text, 0.01, 20, "tesla, such as 1.5 or 3, or n/a")


def _event(text: str) -> int:
    if not _NUMBER.fullmatch(text) or float(text) not in (0.0, 1.0):
        raise _Illegal("1 (died), 0 (censored), or n/a")
    return int(float(text))


def _grade(text: str) -> int:
    word = text.lower().removesuffix(".0").removeprefix("g")
    if word not in _GRADES:
        raise _Illegal("2, 3, 4, or n/a")
    return _GRADES[word]


def _sex(text: str) -> str:
    if text.lower() not in _SEXES:
        raise _Illegal("F, M, or n/a")
    return _SEXES[text.lower()]


def _purpose(text: str) -> str:
    if text.lower() not in PURPOSES:
        raise _Illegal(", ".join(PURPOSES))
    return text.lower()
