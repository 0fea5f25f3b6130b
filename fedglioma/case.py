"""The vocabulary: modality, gene, genotype, case, and why a case was left out.

Orders are fixed here and stored with every cache and checkpoint, never inferred:
channels are ``flair, t1ce, t1, t2``; genes are ``idh, atrx, codel_1p19q``.
"""

import os
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, field_validator

from fedglioma.words import one_line

UNKNOWN = -1
"""Label of a marker that was not measured. 0 is wild-type or intact, 1 is mutant or codeleted."""


class Modality(StrEnum):
    """An MRI sequence; members stand in channel order."""

    FLAIR = "flair"
    T1CE = "t1ce"
    T1 = "t1"
    T2 = "t2"


CHANNELS: tuple[Modality, ...] = tuple(Modality)


class Gene(StrEnum):
    """A molecular marker that the networks predict; members stand in task order."""

    IDH = "idh"
    ATRX = "atrx"
    CODEL = "codel_1p19q"


GENES: tuple[Gene, ...] = tuple(Gene)


class Task(StrEnum):
    """What a network can be asked of a case: a marker's status, or where the tumour is.

    A marker's task equals its ``Gene``, as a key too.
    """

    IDH = "idh"
    ATRX = "atrx"
    CODEL = "codel_1p19q"
    SEGMENTATION = "segmentation"


TASKS: tuple[Task, ...] = tuple(Task)

GENE_TITLES: dict[Gene, str] = {Gene.IDH: "IDH", Gene.ATRX: "ATRX", Gene.CODEL: "1p/19q"}
TASK_TITLES: dict[Task, str] = {
    Task.IDH: "IDH",
    Task.ATRX: "ATRX",
    Task.CODEL: "1p/19q",
    Task.SEGMENTATION: "Tumour",
}
CLASS_TITLES: dict[Gene, tuple[str, str]] = {
    Gene.IDH: ("wild-type", "mutant"),
    Gene.ATRX: ("wild-type", "mutant"),
    Gene.CODEL: ("intact", "codeleted"),
}


class Frozen(BaseModel):
    """A value: checked when made, never changed after, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Genotype(Frozen):
    """Status of the three markers of one patient, ``UNKNOWN`` where not measured."""

    idh: int = Field(default=UNKNOWN, ge=-1, le=1)
    atrx: int = Field(default=UNKNOWN, ge=-1, le=1)
    codel_1p19q: int = Field(default=UNKNOWN, ge=-1, le=1)

    def label(self, gene: Gene) -> int:
        """Return the label of one marker: 0, 1 or ``UNKNOWN``."""
        return int(getattr(self, gene.value))

    def labels(self) -> tuple[int, ...]:
        """Return the labels in task order."""
        return tuple(self.label(gene) for gene in GENES)

    @property
    def known(self) -> bool:
        """Whether at least one marker was measured."""
        return any(label != UNKNOWN for label in self.labels())


class Outcome(Frozen):
    """Follow-up from diagnosis: days, and whether the patient died (1) or was censored (0)."""

    os_days: float = Field(ge=0)
    os_event: int = Field(ge=0, le=1)


_ESCAPED: Final = "file://"


def _path_text(path: Path) -> str:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.absolute().as_uri()
    return str(path)


def _path_of(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str):
        raise ValueError("a path is text")
    escaped = value.startswith(_ESCAPED)
    return Path(os.fsdecode(unquote_to_bytes(value.removeprefix(_ESCAPED))) if escaped else value)


AnyPath = Annotated[Path, PlainValidator(_path_of), PlainSerializer(_path_text, when_used="json")]
"""A path whose name need not be text: in JSON it is then escaped, as a URI."""


class Case(Frozen):
    """One imaging visit of one patient, as a hospital holds it.

    ``patient`` is the cohort's ``participant_id`` and the key of every split. It stays at the site. A
    modality is one NIfTI file in ``volumes``, or the files of a DICOM series, in order, in ``series``.
    ``linkage_id`` is the person's own number in the whole country: it is in memory only, and left out of
    whatever is written or shown.
    """

    patient: str
    site: str
    volumes: dict[Modality, AnyPath]
    series: dict[Modality, tuple[AnyPath, ...]] = {}
    mask: AnyPath | None = None
    genotype: Genotype = Genotype()
    grade: int | None = None
    age: float | None = None
    sex: str | None = None
    outcome: Outcome | None = None
    scanner: str | None = None
    field_strength_t: float | None = None
    purpose: str | None = None
    linkage_id: str | None = Field(default=None, exclude=True, repr=False)

    @property
    def present(self) -> tuple[Modality, ...]:
        """Modalities that this case has, in channel order."""
        return tuple(m for m in CHANNELS if m in self.volumes or m in self.series)


class Finding(Frozen):
    """One case, one stage, one reason in words: an exclusion or a warning about a case that is kept.

    ``code`` is a stable short name (``truncated``, ``constant``, ``label``, ...) that tables group by;
    ``message`` says what is wrong and what to do, in one line, without a path outside the cohort.
    """

    patient: str
    site: str
    code: str
    message: str
    stage: str = "read"

    @field_validator("patient", "site", "message", mode="before")
    @classmethod
    def _printable(cls, value: object) -> object:
        return one_line(value) if isinstance(value, str) else value


def subset_name(present: tuple[Modality, ...]) -> str:
    """Return the name of a modality subset, as in ``flair+t1ce+t1``; ``none`` for the empty one."""
    return "+".join(m.value for m in CHANNELS if m in present) or "none"


SUBSETS: Final = tuple(
    subset_name(present) for size in range(len(CHANNELS) + 1) for present in combinations(CHANNELS, size)
)
"""The names of all sets of modalities, the empty one first."""
