"""A prepared case: what training and evaluation read, known without what makes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedglioma.case import Case, Modality
from fedglioma.scale import Inner, Landmarks, inner_landmarks

Presence = tuple[bool, bool, bool, bool]
"""Which modalities a case has, in the order of ``CHANNELS``."""


@dataclass(frozen=True)
class PreparedCase:
    """A case with its array on disk: float16, shape (4, D, H, W), channels as in ``CHANNELS``.

    ``digest`` is the SHA-256 of the array's file; ``percentiles`` are those of ``scale.py``, of each
    modality's values in the brain before any common scale; ``voxels`` are digests of the images as they
    were given (``source.voxel_digest``); ``spacing_mm`` are the edges of the array's voxels. ``mask`` is the
    expert's tumour mask on the same voxels: uint8, shape (D, H, W), 0 background, 1 necrotic or
    non-enhancing, 2 oedema, 3 enhancing; ``mask_digest`` is the SHA-256 of its file. Both are None where
    there is no usable mask, and so is then ``case.mask``.
    """

    case: Case
    array: Path
    present: Presence
    digest: str
    percentiles: Mapping[Modality, Landmarks]
    voxels: Mapping[Modality, str] = field(default_factory=dict)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    mask: Path | None = None
    mask_digest: str | None = None

    def landmarks(self) -> dict[Modality, Inner]:
        """Return the inner landmarks of each modality."""
        return {modality: inner_landmarks(values) for modality, values in self.percentiles.items()}
