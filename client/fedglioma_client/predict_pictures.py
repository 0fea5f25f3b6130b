"""Pictures of a prediction: each sequence with the brain's edge and the outlined tumour."""

from base64 import b64encode
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedglioma.case import CHANNELS, Modality
from fedglioma.data.cache import Record
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.volume import FloatArray, Mask
from fedglioma.metrics.predictions import THRESHOLD
from fedglioma_client.thumbnail import Flat, Plane, picture

PANEL_PX: Final = 288
_GAP: Final = 0.04
_WINDOW: Final = (1.0, 99.5)


@dataclass(frozen=True)
class Slices:
    """One axial slice of a case, through the largest part of the tumour or, without one, of the brain.

    ``planes`` has (X, Y) of each sequence that is there; ``size_mm`` is what they span.
    """

    planes: dict[Modality, Plane]
    brain: Flat
    tumour: Flat | None
    size_mm: tuple[float, float]

    @classmethod
    def of(cls, prepared: PreparedCase, record: Record, probability: FloatArray | None) -> "Slices":
        """Return the slice of a prepared case; raises ``OSError`` when its array cannot be read."""
        array = np.load(prepared.array, mmap_mode="r", allow_pickle=False)
        brain: Mask = (np.asarray(array) != 0).any(axis=0)
        tumour = None if probability is None else probability > THRESHOLD
        shown = tumour if tumour is not None and tumour.any() else brain
        level = int(shown.sum(axis=(0, 1)).argmax())
        width, height = (abs(record.affine[axis][axis]) * brain.shape[axis] for axis in range(2))
        return cls(
            planes={
                modality: array[channel, :, :, level].astype(np.float32)
                for channel, modality in enumerate(CHANNELS)
                if prepared.present[channel]
            },
            brain=brain[:, :, level],
            tumour=None if tumour is None else tumour[:, :, level],
            size_mm=(width, height),
        )

    def pictures(self) -> dict[Modality, bytes]:
        """Return a PNG for each sequence."""
        return {
            modality: picture(plane, self.size_mm, self.brain, self.tumour, longest=PANEL_PX)
            for modality, plane in self.planes.items()
        }

    def overview(self) -> bytes:
        """Return one PNG of all sequences side by side, in channel order from the left."""
        gap = max(1, round(_GAP * self.brain.shape[0]))
        pad = ((gap, gap), (0, 0))
        # A picture shows high X on the left, so the first sequence comes last.
        planes = [np.pad(self._evened(plane), pad) for plane in reversed(self.planes.values())]
        count = len(planes)
        drawn = None if self.tumour is None else np.concatenate([np.pad(self.tumour, pad)] * count)
        width, height = self.size_mm
        size = (count * width * (1 + 2 * gap / self.brain.shape[0]), height)
        return picture(
            np.concatenate(planes),
            size,
            np.concatenate([np.pad(self.brain, pad)] * count),
            drawn,
            longest=round(PANEL_PX * max(size) / max(self.size_mm)),
        )

    def _evened(self, plane: Plane) -> Plane:
        """Return a plane with its brain between 0 and 1, so that no sequence outshines the others."""
        values = plane[self.brain]
        low, high = np.percentile(values, _WINDOW) if values.size else (0.0, 1.0)
        evened: Plane = np.clip((plane - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
        return evened


def inline(png: bytes) -> str:
    """Return a picture as a page holds it."""
    return "data:image/png;base64," + b64encode(png).decode()
