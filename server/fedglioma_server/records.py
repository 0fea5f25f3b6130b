"""The run folder's files as checked models: what a round wrote is what the report reads.

``run.json`` is a RunRecord, each line of ``rounds.jsonl`` a RoundRecord; neither holds a patient's id,
a path or a date of a patient. Files are written to a temporary name, flushed to disk and renamed.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglioma.case import Gene, Modality, Task
from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma.newfile import replacing
from fedglioma.pooled import Pooled
from fedglioma.privacy.accounting import Spent
from fedglioma.scale import Scale

T = TypeVar("T", bound=BaseModel)

MOST_NAMED = 3
"""Fields that are wrong, in an error."""


class Record(BaseModel):
    """A value on disk: checked on reading, no unknown fields, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class SiteData(Record):
    """What the coordinator knows of a site's data after the statistics round (simulation: and before it).

    Cells below the site's small-cell limit are None; ``cases`` is rounded up to a multiple of it.
    """

    cases: int
    labels: dict[Gene, tuple[int | None, int | None, int | None]] = Field(
        description="per gene: wild-type or intact, mutant or codeleted, unknown"
    )
    modalities: dict[str, int | None] = Field(description="per modality subset: training cases")
    masks: int | None = Field(default=0, description="training cases whose tumour somebody outlined")
    small_cell_limit: int
    landmark_epsilon: float | None = Field(
        default=None, description="of the noise on what it said of its intensities; None: no noise"
    )
    counts_epsilon: float | None = Field(default=None, description="of the noise on these counts")
    masked: bool = Field(
        default=False, description="whether the counts went into a masked sum alone, and stand here as none"
    )


class SplitCount(Record):
    """Cases per split of one site; known to the coordinator in a simulation only."""

    train: int = 0
    selection: int = 0
    report: int = 0


class DataIssue(Record):
    """Cases left out, or kept with a warning, by site and reason; no ids."""

    site: str
    kind: Literal["excluded", "warning"]
    code: str
    cases: int
    explanation: str


class ScaleDoubt(Record):
    """A site that was left out of the intensity scale, or two that lay too far apart when it was fitted."""

    kind: Literal["left_out", "apart"]
    sites: list[str]
    modality: Modality
    distance: float = Field(description="points of 100: from the sites' median, or between the two")


class SharedPatients(Record):
    """Two sites that seem to hold the same patients.

    ``at_least`` counts them from below, down to a multiple of the limit; None: some, but fewer than it.
    """

    sites: tuple[str, str]
    at_least: int | None
    small_cell_limit: int


class Linkage(Record):
    """What came of the search for patients who are at two sites."""

    compared: list[str] = Field(description="sites that sent tags")
    pairs: list[SharedPatients] = []


class RunRecord(Record):
    """run.json: what was run, with what, on what."""

    schema_version: int = 1
    run_id: str
    created: str
    finished: str | None = None
    status: Literal["running", "completed", "interrupted", "failed"] = "running"
    failure: str | None = Field(default=None, description="why the run failed, in one line, without a path")
    engine: str
    command: str
    synthetic: bool
    versions: dict[str, str]
    settings: RunConfig
    cohorts: list[str] = Field(description="names of the cohorts, no paths")
    data_digest: str = Field(description="sha256 over the digests of all prepared cases, sorted")
    division: str | None = Field(default=None, description="fold of a study, or of a file of splits")
    division_digest: str | None = Field(default=None, description="sha256 of who does what; None: drawn")
    initial_digest: str | None = Field(
        default=None, description="of the weights that the run started from; None: untrained"
    )
    initial_spent: Spent | None = Field(
        default=None, description="of the privacy of patients, by those weights; None: not private"
    )
    parameters: int
    payload_bytes: int = Field(description="bytes of one update as it travels")
    splits: dict[str, SplitCount]
    sites: dict[str, SiteData] = {}
    made_up_sites: list[str] = Field(
        default=[], description="hospitals of a simulation without settings of their own: limits begin anew"
    )
    class_counts: dict[Gene, tuple[float, float]] = Field(
        default={},
        description="training counts behind the loss margins, suppressed cells estimated; of this run's "
        "sites also where it started from a model",
    )
    suppressed_cells: int = 0
    pooled: Pooled | None = Field(
        default=None, description="with secure_statistics: what the sites' numbers add up to"
    )
    scale: Scale | None = Field(
        default=None, description="the consortium's intensities; None: each case on its own scale"
    )
    scale_id: str | None = Field(default=None, description="sha256 over the scale's landmarks")
    scale_from_model: bool = Field(
        default=False,
        description="whether the scale is that of the model that the run started from; false: of its sites",
    )
    scale_doubts: list[ScaleDoubt] = []
    linkage: Linkage | None = Field(
        default=None, description="patients at two sites; None: the run did not look for them"
    )
    frozen: dict[Task, list[int]] = Field(
        default={}, description="rounds in which a head was not summed for want of hospitals that teach it"
    )
    frozen_words: str = Field(default="", description="the same in a sentence")
    issues: list[DataIssue] = []

    @property
    def key(self) -> str:
        """What tells this run from every other, also of the same name; hospitals' ledgers have it."""
        return hashlib.sha256(f"{self.run_id} {self.created}".encode()).hexdigest()[:16]

    @property
    def told(self) -> dict[str, SiteData]:
        """The counts that are known: by site, or of all together where they were told under masks."""
        if self.pooled is None:
            return self.sites
        summed = self.pooled
        data = SiteData(
            cases=round(summed.cases),
            labels={gene: _whole(cells) for gene, cells in summed.labels.items()},
            modalities={name: round(count) for name, count in summed.modalities.items()},
            masks=round(summed.masks),
            small_cell_limit=max((site.small_cell_limit for site in self.sites.values()), default=1),
        )
        return {f"{len(self.sites)} sites together": data}


def _whole(cells: tuple[float, float, float]) -> tuple[int, int, int]:
    wild, mutant, unknown = (round(cell) for cell in cells)
    return wild, mutant, unknown


class SiteRound(Record):
    """One site in one round."""

    status: Literal["ok", "error", "refused", "no_reply", "idle"]
    code: str | None = Field(default=None, description="the reason in a word")
    reason: str | None = None
    weights: dict[str, float] = Field(default={}, description="aggregation weight per parameter group")
    steps: int = 0
    loss: float | None = None
    loss_by_task: dict[Task, float | None] = {}
    seconds: dict[str, float] = Field(default={}, description="by phase: setup, load, train, pack")
    bytes_down: int = 0
    bytes_up: int = 0
    update_norm: float | None = None
    epsilon: float | None = Field(
        default=None, description="spent of its patients in this run so far; None: not private"
    )
    digest: str | None = Field(default=None, description="sha256 of the update as it travelled")
    ledger_head: str | None = Field(
        default=None, description="head of the site's privacy ledger after the round, as it told it"
    )


class HeldOutRound(Record):
    """The global model on the selection split after a round; None where undefined or of few patients.

    ``loss`` chooses the round and has all digits. What is logged, drawn and shown elsewhere is ``told_loss``.
    """

    cases: int
    loss: float | None
    loss_by_task: dict[Task, float | None]
    auc: dict[Gene, float | None]
    accuracy: dict[Gene, float | None]
    dice: float | None = Field(default=None, description="mean over the cases with an outlined tumour")

    @property
    def coarse(self) -> bool:
        """Whether few patients, or few of one status, are behind a part of the loss."""
        return not any(value is not None for value in self.loss_by_task.values())

    @property
    def told_loss(self) -> float | None:
        """The loss as it may be told: to two digits where few patients are behind a part of it."""
        return self.loss if self.loss is None or not self.coarse else float(f"{self.loss:.2g}")

    def loss_text(self, decimals: int) -> str:
        """Return the loss as it may be printed, with so many decimals at most; empty where there is none."""
        if self.loss is None:
            return ""
        return f"{self.loss:.2g}" if self.coarse else f"{self.loss:.{decimals}f}"


class RoundRecord(Record):
    """A line of rounds.jsonl. Round 0 is the untrained model and has no sites."""

    round: int
    seconds: dict[str, float] = Field(
        default={}, description="by phase: sites, aggregate, evaluate, checkpoint"
    )
    sites: dict[str, SiteRound] = {}
    heldout: HeldOutRound
    log_variances: dict[Gene, float] = Field(
        default={}, description="uncertainty weights s_t after the round"
    )
    selected: bool = Field(default=False, description="lowest held-out loss so far")
    weights_digest: str | None = Field(default=None, description="sha256 of the global weights after it")
    state_digest: str | None = Field(
        default=None, description="sha256 of what the strategy remembers after it"
    )


class PrivacyRecord(Record):
    """privacy.json: what protects the patients of this run, and what does not.

    ``unit`` is who is hidden: a patient with all scans, or a whole hospital. ``epsilon`` is the largest of
    the sites' (of which ``sites`` has each), over all rounds and the noised counts. ``noise_over_gradient``
    is how many times longer the noise of a step is than its gradient can be, in the mean of the sites.
    ``ledger_run`` is what the run is called in the hospitals' ledgers.
    """

    differentially_private: bool = False
    statement: str
    small_cell_limit: int
    unit: Literal["patient", "site"] | None = None
    epsilon: float | None = None
    delta: float | None = None
    accountant: str | None = None
    noise_multiplier: float | None = None
    clip_norm: float | None = None
    clipping: str | None = None
    sampling_rate: float | None = None
    steps_per_round: int | None = None
    counts_epsilon: float | None = None
    noise_over_gradient: float | None = None
    ledger_run: str | None = None
    sites: dict[str, float] = {}
    secure_aggregation: bool = False
    secure_statistics: bool = False
    not_covered: list[str] = []
    leaves_a_site: list[str]
    never_leaves_a_site: list[str]


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, record: BaseModel | dict[str, Any]) -> None:
    """Write a record as indented JSON, whole or not at all."""
    data = record.model_dump(mode="json") if isinstance(record, BaseModel) else record
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, kind: type[T], what: str = "record") -> T:
    """Return a record from disk; ``what`` it is stands in the error.

    Raises
    ------
    ConfigError
        The file is absent or does not hold such a record.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: not there; is this a run folder?") from None
    except (ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: no {what} of this version of fedglioma ({_problem(error, kind)}); name another folder, "
            "restore the file, or use the version that wrote it"
        ) from None


def _problem(error: ValidationError | UnicodeDecodeError, kind: type[BaseModel]) -> str:
    """Return what is wrong with a file in words; of what stands in it, nothing is shown but our own names."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text"
    found = error.errors(include_url=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return "it is not JSON, or cut short"
    for problem in found:
        if problem["type"] == "value_error":
            return problem["msg"].removeprefix("Value error, ")
    tops = dict.fromkeys(str(problem["loc"][0]) for problem in found if problem["loc"])
    names = [name for name in tops if name in kind.model_fields]
    if not names:
        return "something else stands in it"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"missing or not as expected: {', '.join(names[:MOST_NAMED])}{more}"


def write_rounds(path: Path, rounds: Iterable[RoundRecord]) -> None:
    """Write rounds.jsonl anew: one line per round, whole or not at all."""
    write_text(path, "".join(record.model_dump_json() + "\n" for record in rounds))


def read_rounds(path: Path) -> list[RoundRecord]:
    """Return the rounds of a run folder; an absent file is no rounds.

    Raises
    ------
    ConfigError
        A line is not a round's record.
    """
    if not path.exists():
        return []
    rounds = []
    # Bytes: a line end of Unicode in a site's words, which JSON leaves as it is, must not end the line.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            rounds.append(RoundRecord.model_validate_json(line))
        except ValidationError as error:
            raise ConfigError(
                f"{path}: line {number}: no round's record of this version of fedglioma "
                f"({_problem(error, RoundRecord)}); restore the file, or use the version that wrote it"
            ) from None
    return rounds
