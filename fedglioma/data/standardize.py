"""Prepared cases on the consortium's intensity scale: a second, quick pass over what the cache holds.

A new scale never repeats reading, registration or bias correction; the arrays of the first pass stay.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from fedglioma.case import CHANNELS, Case
from fedglioma.console import Progress, silent
from fedglioma.data.cache import Cache, HalfArray, content_key
from fedglioma.data.normalize import onto_scale
from fedglioma.data.pool import map_cases
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import DataError
from fedglioma.scale import Scale


def standardize_cases(
    cases: Sequence[PreparedCase],
    scale: Scale,
    cache: Cache,
    *,
    workers: int = 1,
    progress: Progress = silent,
) -> tuple[PreparedCase, ...]:
    """Return the cases with their arrays on the scale; what the cache has already is only checked.

    Raises
    ------
    DataError
        A prepared volume is gone or damaged.
    OSError
        The cache cannot be written.
    """
    finished = 0

    def one() -> None:
        nonlocal finished
        finished += 1
        progress(finished, len(cases))

    work = partial(_standardized, scale, cache)
    return tuple(map_cases(work, list(cases), workers=workers, done=one))


def _standardized(scale: Scale, cache: Cache, prepared: PreparedCase) -> PreparedCase:
    case: Case = prepared.case
    before = cache.get(prepared.array.stem)
    if before is None or before.digest != prepared.digest:
        raise DataError(f"{prepared.array.name}: the prepared volume is gone or damaged: prepare it again")
    settings = {"prepared": prepared.digest, "scale": scale.id}
    key = content_key(before.record.inputs, settings)
    found = cache.get(key)
    if found is not None:
        return found.as_case(case)
    array: HalfArray = np.array(before.open())
    for channel, modality in enumerate(CHANNELS):
        if modality in prepared.percentiles:
            own, common = prepared.percentiles[modality], scale.landmarks[modality]
            array[channel] = onto_scale(array[channel].astype(np.float32), own, common)
    record = before.record.model_copy(update={"scale": scale.id})
    return cache.put(key, array, record).as_case(case)
