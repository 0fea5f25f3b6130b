"""Batches in an order that a seed decides, read in the background while the network trains."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedglioma.data.dataset import CaseDataset, Sample
from fedglioma.errors import ConfigError

PREFETCH = 2
"""Batches that are read ahead; at full size one holds 67 MB."""

ORDER_STREAM = 2
"""Keeps the random numbers of the order apart from those of the dataset's crops, for the same seed."""


Part = TypeVar("Part")
Batch = TypeVar("Batch")


def train_batches(dataset: CaseDataset, *, batch_size: int, seed: int, epoch: int) -> Iterator[Sample]:
    """Return one epoch of training: every case once, in this epoch's order, randomly cropped.

    The last batch is smaller where the cases do not fill it; a single case left over joins the batch before
    it, because batch normalisation has no statistics of one case.

    Raises
    ------
    ConfigError
        The batch size, the seed or the epoch is out of range.
    DataError
        A prepared volume is gone or damaged; raised when its batch is due.
    """
    if seed < 0 or epoch < 0:
        raise ConfigError(f"seed {seed}, epoch {epoch}: numbers of at least 0 are needed")
    order = np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(len(dataset)).tolist()
    parts = _divide(order, batch_size)
    if len(parts) > 1 and len(parts[-1]) == 1 and batch_size > 1:
        parts[-2:] = [[*parts[-2], *parts[-1]]]
    return _batches(parts, lambda index: dataset.training_sample(index, epoch))


def eval_batches(dataset: CaseDataset, *, batch_size: int) -> Iterator[Sample]:
    """Return every case once, in the dataset's order, cropped at its centre.

    Raises
    ------
    ConfigError
        The batch size is below 1.
    DataError
        A prepared volume is gone or damaged; raised when its batch is due.
    """
    return _batches(_divide(range(len(dataset)), batch_size), dataset.__getitem__)


def drawn_batches(
    dataset: CaseDataset, parts: Iterable[tuple[int, Sequence[int]]]
) -> Iterator[Sample | None]:
    """Return the batches that somebody else drew: for each part its indices, cropped as in its epoch.

    None stands for a part without indices. Parts may be drawn while earlier ones are trained on.

    Raises
    ------
    DataError
        A prepared volume is gone or damaged; raised when its batch is due.
    """

    def read(part: tuple[int, Sequence[int]]) -> Sample | None:
        epoch, indices = part
        return stack([dataset.training_sample(index, epoch) for index in indices]) if indices else None

    return _ahead(read, parts)


def _divide(order: Sequence[int], size: int) -> list[Sequence[int]]:
    if size < 1:
        raise ConfigError(f"batch size: {size}: at least 1 case is needed")
    return [order[start : start + size] for start in range(0, len(order), size)]


def _batches(parts: Sequence[Sequence[int]], sample: Callable[[int], Sample]) -> Iterator[Sample]:
    def read(indices: Sequence[int]) -> Sample:
        return stack([sample(index) for index in indices])

    return _ahead(read, parts)


def _ahead(read: Callable[[Part], Batch], parts: Iterable[Part]) -> Iterator[Batch]:
    """Yield what ``read`` makes of each part, having one thread work on the next ones meanwhile."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
    pending: deque[Future[Batch]] = deque()
    try:
        for part in parts:
            pending.append(pool.submit(read, part))
            if len(pending) > PREFETCH:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # Also reached when the caller stops early: what was not begun is dropped.
        pool.shutdown(wait=True, cancel_futures=True)


def stack(samples: Sequence[Sample]) -> Sample:
    """Return samples of one dataset as one batch, each field with a new first axis; no mask stays None."""
    images, present, genotype, masks = zip(*samples, strict=True)
    known = [mask for mask in masks if mask is not None]
    mask = _stacked(known) if known else None
    return Sample(_stacked(images), _stacked(present), _stacked(genotype), mask)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    # By numpy: torch would start threads of its own in the background thread, and they would
    # compete with the training that the reading should hide behind.
    return torch.from_numpy(np.stack([tensor.numpy() for tensor in tensors]))
