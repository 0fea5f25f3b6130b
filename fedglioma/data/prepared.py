"""A prepared case: what training and evaluation read, known without what makes it."""

from dataclasses import dataclass
from pathlib import Path

from fedglioma.case import Case

Presence = tuple[bool, bool, bool, bool]
"""Which modalities a case has, in the order of ``CHANNELS``."""


@dataclass(frozen=True)
class PreparedCase:
    """A case with its array on disk: float16, shape (4, D, H, W), channels as in ``CHANNELS``.

    ``digest`` is the SHA-256 of the array's file.
    """

    case: Case
    array: Path
    present: Presence
    digest: str
