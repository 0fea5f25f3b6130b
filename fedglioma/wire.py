"""The messages between server and sites, and the only place that knows their record keys.

A message is one JSON text of a checked model, beside the weights where there are any. Whatever is not
a field here cannot travel: no path, id, name, date or image has a field.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from pydantic import ConfigDict, Field, NonNegativeFloat, ValidationError

from fedglioma.case import Frozen, Gene, Modality, Task
from fedglioma.config.run import Payload, RunConfig
from fedglioma.errors import ProtocolError
from fedglioma.linkage import MOST_TAGS, Tag
from fedglioma.privacy.masked_wire import (
    Consent,
    Inbox,
    KeyOffer,
    Revealed,
    Roster,
    SealedShares,
    Session,
    Survivors,
    UnmaskRequest,
)
from fedglioma.scale import LandmarkSums, Scale
from fedglioma.weights import Forms, Packed, from_record, to_record

PROTOCOL: Literal[1] = 1
STATISTICS = "query.statistics"
TRAIN = "train"
FINISHED = "query.finished"
SECURE = "query.secure"
PHASES = ("setup", "load", "train", "pack")
"""What a site's round consists of: the names in ``TrainReply.seconds``."""

MOST_MASKED = 4096
"""Bytes of masked counts, many times what there are."""

_BODY = "fedglioma"
_WEIGHTS = "weights"

T = TypeVar("T", bound="Body")


class Body(Frozen):
    """What every message carries; a version that the receiver does not speak is refused, and so is NaN."""

    model_config = ConfigDict(allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64")

    protocol: Literal[1] = PROTOCOL


class Masking(Frozen):
    """What a site needs to mask its answer: the others' shares, and what all weights add up to."""

    model_config = ConfigDict(allow_inf_nan=False, ser_json_bytes="base64", val_json_bytes="base64")

    subject: str = Field(max_length=200, description="whose numbers are added up: purpose, run and round")
    inbox: Inbox
    totals: dict[str, NonNegativeFloat] = Field(
        default={}, description="aggregation weight per group over all sites; a site's is told as its share"
    )


class SecureRequest(Body):
    """One of the short exchanges around a masked sum; of the last four fields one is set."""

    settings: RunConfig
    purpose: Literal["statistics", "train"]
    session: Session
    begin: bool = False
    roster: Roster | None = None
    survivors: Survivors | None = None
    unmask: UnmaskRequest | None = None


class SecureReply(Body):
    """The answer to it: of the four the one that was asked for."""

    kind: Literal["secure"] = "secure"
    site: str
    offer: KeyOffer | None = None
    shares: SealedShares | None = None
    consent: Consent | None = None
    revealed: Revealed | None = None


class StatisticsRequest(Body):
    """Round 0: who are you, what do you build, and which cases do you hold.

    ``run`` tells apart what a site told different runs with noise.
    """

    run: str
    settings: RunConfig
    landmarks: bool = Field(
        default=True, description="whether intensity landmarks are asked for: not where a scale stands"
    )
    masking: Masking | None = Field(
        default=None, description="with it the numbers are answered masked, and nothing of them is readable"
    )

    def agreed(self) -> str:
        """Return what stands for all that sites must be asked alike, for their masked sum to hide each."""
        return _digest(self.model_dump(mode="json", exclude={"masking"}))


class StatisticsReply(Body):
    """Counts over a site's training cases; None stands for a cell below the site's small-cell limit."""

    kind: Literal["statistics"] = "statistics"
    site: str
    version: str
    layout: str = Field(description="digest of the weights' layout that this site builds")
    cases: int = Field(ge=0, description="rounded up to a multiple of the small-cell limit")
    labels: dict[Gene, tuple[int | None, int | None, int | None]]
    modalities: dict[str, int | None]
    masks: int | None = Field(default=0, description="cases whose tumour somebody outlined")
    weights: dict[str, NonNegativeFloat] = Field(
        description="aggregation weight per group, from the published counts"
    )
    small_cell_limit: int = Field(ge=1)
    landmarks: dict[Modality, LandmarkSums] = Field(
        default={}, description="sums of intensity landmarks per modality, where there are enough cases"
    )
    landmark_epsilon: float | None = Field(
        default=None, gt=0, description="of the noise on these sums; None: no noise, or no sums"
    )
    synthetic: bool = Field(default=False, description="whether the patients are made up")
    linkage: tuple[Tag, ...] = Field(
        default=(),
        max_length=MOST_TAGS,
        description="keyed tags of people and images, where run and site ask for duplicates; else none",
    )
    masked: bytes | None = Field(
        default=None,
        max_length=MOST_MASKED,
        description="the numbers of ``pooled.py`` under masks, 32 bits each; counts above are then empty",
    )
    counts_epsilon: float | None = Field(
        default=None, gt=0, description="of the noise on the counts; None: no noise"
    )
    ledger_head: str = Field(
        default="", max_length=64, description="head of the site's privacy ledger, where anything is noised"
    )


class TrainRequest(Body):
    """One round of local work; the global weights travel beside it.

    ``run`` tells apart what a site keeps for itself between the rounds of one run (FedBN).
    """

    run: str
    round: int = Field(ge=1)
    settings: RunConfig
    proximal_mu: float = Field(ge=0)
    class_counts: dict[Gene, tuple[float, float]]
    layout: str
    scale: Scale | None = Field(
        default=None, description="the consortium's intensities; None: each case's own"
    )
    shared: tuple[Tag, ...] = Field(
        default=(),
        max_length=MOST_TAGS,
        description="those of the site's own tags that came from another site too",
    )
    audit_head: str = Field(
        default="", max_length=64, description="head of the server's audit log, which the site records"
    )
    ledger_head: str = Field(
        default="",
        max_length=64,
        description="head of the site's privacy ledger as the server last heard it: the site still has it",
    )
    masking: Masking | None = Field(default=None, description="with secure aggregation, else none")

    def agreed(self, weights: str, totals: Mapping[str, float]) -> str:
        """Return what stands for all that sites must be asked alike, for their masked sum to hide each.

        A server that gave other terms, weights or totals to all sites but one could make their parts nothing.

        Parameters
        ----------
        weights : str
            Digest of the global weights.
        totals : mapping
            Of ``Masking``.
        """
        own = {"masking", "shared", "audit_head", "ledger_head"}
        return _digest([self.model_dump(mode="json", exclude=own), weights, dict(totals)])


class TrainReply(Body):
    """What a site reports of a round; its update travels beside it."""

    kind: Literal["train"] = "train"
    site: str
    round: int
    layout: str
    payload: Payload
    digest: str = Field(description="sha256 of the update as it travels")
    weights: dict[str, NonNegativeFloat]
    steps: int
    loss: float | None
    loss_by_task: dict[Task, float | None]
    seconds: dict[str, float]
    ledger_head: str = Field(
        default="", max_length=64, description="head of the site's privacy ledger after the round"
    )


class RunFinished(Body):
    """The last message of a run: nothing more will be asked."""

    run: str
    status: str


class Noted(Body):
    """The answer to it."""

    kind: Literal["noted"] = "noted"
    site: str


class Refusal(Body):
    """A site's no: the class of the error and its exit code; words only where they cannot name data."""

    kind: Literal["refusal"] = "refusal"
    site: str
    error: str
    exit_code: int
    reason: str


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def request_record(body: Body, arrays: Packed | None = None) -> RecordDict:
    """Return a message's content."""
    content = RecordDict({_BODY: ConfigRecord({"json": body.model_dump_json()})})
    if arrays is not None:
        content[_WEIGHTS] = to_record(arrays)
    return content


def reply_to(message: Message, body: Body, arrays: Packed | None = None) -> Message:
    """Return the answer to a message."""
    return Message(request_record(body, arrays), reply_to=message)


def body_of(content: RecordDict, kind: type[T]) -> T:
    """Return the checked body of a message.

    Raises
    ------
    ProtocolError
        The message is not of this kind or of another protocol version.
    """
    record = content.get(_BODY)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise ProtocolError(
            f"message: not a {kind.__name__} of fedglioma; do both ends run the same version?"
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(step) for step in problem["loc"])
        raise ProtocolError(
            f"message: not a {kind.__name__} ({place}: {problem['msg']}); do both ends run the same version?"
        ) from None


def is_refusal(content: RecordDict) -> bool:
    """Whether a reply is a site's no."""
    record = content.get(_BODY)
    return isinstance(record, ConfigRecord) and '"kind":"refusal"' in str(record.get("json", ""))


def weights_of(content: RecordDict, forms: Forms | None = None) -> Packed:
    """Return the weights or the update that travel with a message, as views of its bytes.

    Parameters
    ----------
    forms : mapping, optional
        What each group must be, looked at before anything is allocated; without it float32 of any size.

    Raises
    ------
    ProtocolError
        There are none, or they are not what they must be.
    """
    record = content.get(_WEIGHTS)
    if not isinstance(record, ArrayRecord):
        raise ProtocolError("message: carries no weights")
    return from_record(record, forms)


def payload_bytes(content: RecordDict) -> int:
    """Return the bytes of weights and body in a message."""
    size = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            size += sum(len(array.data) for array in record.values())
        elif isinstance(record, ConfigRecord):
            size += len(str(record.get("json", "")))
    return size
