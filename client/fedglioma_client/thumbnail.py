"""Small pictures of a prepared case: one slice of each sequence, with outlines, as PNG without a name in it.

Slices are axial, front at the top and the patient's right on the left, as radiologists look at them.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Plane = npt.NDArray[np.float32]
Flat = npt.NDArray[np.bool_]

LONGEST_PX: Final = 144
BRAIN_COLOUR: Final = (70, 200, 255)
TUMOUR_COLOUR: Final = (255, 140, 40)
_GREYS: Final = 40
_BRAIN: Final = _GREYS
_TUMOUR: Final = _GREYS + 1
_WINDOW: Final = (1.0, 99.5)


def picture(
    plane: Plane,
    size_mm: Sequence[float],
    brain: Flat,
    tumour: Flat | None = None,
    window: Flat | None = None,
    *,
    longest: int = LONGEST_PX,
) -> bytes:
    """Return a PNG of a slice, ``longest`` pixels along its longer side.

    Parameters
    ----------
    plane, brain, tumour : array, shape (X, Y)
        Right and front are up; values that are not finite are black.
    size_mm : sequence of float
        What the plane spans along X and Y; pixels are square.
    window : array of bool, shape (X, Y), optional
        Where brightness is scaled from the 1st to the 99.5th percentile; the brain without it.
    """
    shown = np.nan_to_num(_fitted(np.nan_to_num(plane, nan=0.0), size_mm, longest))
    values = plane[(brain if window is None else window) & np.isfinite(plane)]
    low, high = np.percentile(values, _WINDOW) if values.size else (0.0, 1.0)
    greys = np.clip((shown - low) / (high - low if high > low else 1.0), 0, 1) * (_GREYS - 1)
    indices = np.rint(greys).astype(np.uint8)
    inside = _fitted(brain.astype(np.float32), size_mm, longest) >= 0.5
    if window is None:
        indices[~inside] = 0
    indices[_outline(inside)] = _BRAIN
    if tumour is not None:
        indices[_outline(_fitted(tumour.astype(np.float32), size_mm, longest) >= 0.5)] = _TUMOUR
    return _png(np.ascontiguousarray(indices[::-1, ::-1].T))


def _fitted(plane: Plane, size_mm: Sequence[float], longest: int) -> Plane:
    """Return the plane on square pixels, linearly interpolated."""
    pixel = max(size_mm) / longest
    counts = [max(1, round(size / pixel)) for size in size_mm]
    places = [
        np.clip((np.arange(count) + 0.5) / count * n - 0.5, 0, n - 1)
        for count, n in zip(counts, plane.shape, strict=True)
    ]
    fitted: Plane = ndimage.map_coordinates(plane, np.meshgrid(*places, indexing="ij"), order=1)
    return fitted


def _outline(inside: Flat) -> Flat:
    edge: Flat = inside & ~ndimage.binary_erosion(inside)
    return edge


def _png(indices: npt.NDArray[np.uint8]) -> bytes:
    """Return rows of palette indices as a PNG (ISO/IEC 15948): no text, no date."""
    height, width = indices.shape
    greys = [(level, level, level) for level in np.linspace(0, 255, _GREYS).round().astype(int).tolist()]
    palette = b"".join(bytes(colour) for colour in (*greys, BRAIN_COLOUR, TUMOUR_COLOUR))
    # Each row as its difference to the row above (filter 2), which packs better than the greys themselves.
    above = np.vstack([np.zeros((1, width), np.uint8), indices[:-1]])
    rows = np.hstack([np.full((height, 1), 2, np.uint8), indices - above])
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
