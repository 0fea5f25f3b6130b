"""Prepared cases on the consortium's intensity scale: a second, quick pass over what the cache holds.

A new scale never repeats reading, registration or bias correction; the arrays of the first pass stay.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from fedglioma.case import CHANNELS
from fedglioma.data.cache import Cache, Stored, content_key
from fedglioma.data.normalize import onto_scale
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import DataError
from fedglioma.scale import Scale


def on_scale(
    cases: Sequence[PreparedCase], scale: Scale | None, *, workers: int = 1
) -> tuple[PreparedCase, ...]:
    """Return the cases with their arrays on the scale, or as they are where there is none.

    The arrays go into the cache that the prepared ones lie in; what it has already is checked once.

    Raises
    ------
    DataError
        A prepared volume is gone or damaged.
    OSError
        The cache cannot be written.
    """
    if scale is None:
        return tuple(cases)
    with ThreadPoolExecutor(max(workers, 1)) as threads:
        return tuple(threads.map(partial(_moved, scale), cases))


def _moved(scale: Scale, prepared: PreparedCase) -> PreparedCase:
    scaled = _entry(prepared.array, prepared.digest, scale).as_case(prepared.case)
    return replace(scaled, mask=prepared.mask, mask_digest=prepared.mask_digest)


@lru_cache(maxsize=1 << 14)
def _entry(array: Path, digest: str, scale: Scale) -> Stored:
    """Return the entry of a prepared array on the scale; remembered, because each look is a checksum."""
    cache = Cache(array.parent)
    before = cache.get(array.stem)
    if before is None or before.digest != digest:
        raise DataError(f"{array.name}: the prepared volume is gone or damaged: prepare it again")
    key = content_key(before.record.inputs, {"prepared": digest, "scale": scale.id})
    found = cache.get(key)
    if found is not None:
        return found
    image = np.array(before.open())
    for channel, modality in enumerate(CHANNELS):
        if modality in before.record.percentiles:
            own, common = before.record.percentiles[modality], scale.landmarks[modality]
            image[channel] = onto_scale(image[channel].astype(np.float32), own, common)
    return cache.put(key, image, before.record.model_copy(update={"scale": scale.id}))
