import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedglioma.case import Case, Genotype
from fedglioma.data.augment import Augmentation
from fedglioma.data.dataset import CaseDataset, Sample
from fedglioma.data.loader import PREFETCH, eval_batches, stack, train_batches
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError, DataError


@pytest.fixture
def seven_cases(tmp_path: Path) -> CaseDataset:
    """Seven cases; every voxel of case n holds n + 1."""
    cases = []
    for number in range(7):
        path = tmp_path / f"{number}.npy"
        np.save(path, np.full((4, 4, 4, 4), number + 1, np.float16))
        case = Case(patient=f"p{number}", site="a", volumes={}, genotype=Genotype(idh=number % 2))
        cases.append(
            PreparedCase(case=case, array=path, present=(True,) * 4, digest=str(number), percentiles={})
        )
    return CaseDataset(cases, 4, Augmentation(), seed=3)


class Counted(CaseDataset):
    """Tells how many samples were read, and takes its time."""

    reads = 0

    def __getitem__(self, index: int) -> Sample:
        time.sleep(0.002)
        self.reads += 1
        return super().__getitem__(index)


def numbers(batches: Iterator[Sample]) -> list[list[int]]:
    return [[int(image.max()) - 1 for image in batch.image] for batch in batches]


def flat(batches: Iterator[Sample]) -> list[int]:
    return [number for batch in numbers(batches) for number in batch]


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_evaluation_keeps_the_order_and_the_smaller_last_batch(seven_cases: CaseDataset) -> None:
    assert numbers(eval_batches(seven_cases, batch_size=3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_epoch_of_training_sees_every_case_once(seven_cases: CaseDataset) -> None:
    batches = numbers(train_batches(seven_cases, batch_size=2, seed=1, epoch=0))
    assert [len(batch) for batch in batches] == [2, 2, 3]
    assert sorted(number for batch in batches for number in batch) == list(range(7))


def test_order_is_decided_by_seed_and_epoch(seven_cases: CaseDataset) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return flat(train_batches(seven_cases, batch_size=2, seed=seed, epoch=epoch))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_batches_equal_their_samples_taken_alone(seven_cases: CaseDataset) -> None:
    for batch in train_batches(seven_cases, batch_size=3, seed=1, epoch=4):
        alone = [seven_cases.training_sample(int(image.max()) - 1, 4) for image in batch.image]
        assert all(torch.equal(one, other) for one, other in zip(batch[:3], stack(alone)[:3], strict=True))


def test_batch_stacks_every_field(seven_cases: CaseDataset) -> None:
    batch = next(eval_batches(seven_cases, batch_size=2))
    fields = batch[:3]
    assert [tuple(field.shape) for field in fields] == [(2, 4, 4, 4, 4), (2, 4), (2, 3)]
    assert [field.dtype for field in fields] == [torch.float32, torch.float32, torch.int64]
    assert batch.mask is None
    assert batch.genotype[:, 0].tolist() == [0, 1]


def test_batch_has_the_masks_of_its_cases_and_unknown_for_the_others(
    seven_cases: CaseDataset, tmp_path: Path
) -> None:
    path = tmp_path / "mask.npy"
    np.save(path, np.full((4, 4, 4), 2, np.uint8))
    cases = (replace(seven_cases.cases[0], mask=path), *seven_cases.cases[1:])
    dataset = CaseDataset(cases, 4, masks="whole")
    batch = next(eval_batches(dataset, batch_size=2))
    assert batch.mask is not None
    assert (batch.mask.shape, batch.mask.dtype) == ((2, 4, 4, 4), torch.int8)
    assert batch.mask.flatten(1).unique(dim=1).tolist() == [[1], [-1]]


def test_dataset_without_cases_gives_no_batches() -> None:
    assert list(train_batches(CaseDataset([], 4), batch_size=2, seed=0, epoch=0)) == []


def test_reading_goes_ahead_but_only_a_little(seven_cases: CaseDataset) -> None:
    dataset = Counted(seven_cases.cases, 4)
    batches = eval_batches(dataset, batch_size=1)
    assert dataset.reads == 0
    next(batches)
    end = time.monotonic() + 60
    while dataset.reads < 1 + PREFETCH and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    assert dataset.reads == 1 + PREFETCH
    batches.close()  # type: ignore[attr-defined]


def test_no_thread_is_left_when_the_caller_stops_early(seven_cases: CaseDataset) -> None:
    dataset = Counted(seven_cases.cases, 4)
    for _ in eval_batches(dataset, batch_size=1):
        assert reading_threads()
        break
    assert not reading_threads()
    assert dataset.reads <= 1 + PREFETCH


def test_no_thread_is_left_at_the_end(seven_cases: CaseDataset) -> None:
    list(eval_batches(seven_cases, batch_size=2))
    assert not reading_threads()


def test_damaged_volume_is_raised_when_its_batch_is_due(seven_cases: CaseDataset) -> None:
    seven_cases.cases[4].array.write_bytes(b"junk")
    batches = eval_batches(seven_cases, batch_size=2)
    assert numbers(iter([next(batches), next(batches)])) == [[0, 1], [2, 3]]
    with pytest.raises(DataError, match="prepare it again"):
        next(batches)
    assert not reading_threads()


def test_impossible_settings_are_refused_at_the_call(seven_cases: CaseDataset) -> None:
    with pytest.raises(ConfigError, match="batch size: 0"):
        eval_batches(seven_cases, batch_size=0)
    with pytest.raises(ConfigError, match="epoch -1"):
        train_batches(seven_cases, batch_size=1, seed=0, epoch=-1)


def test_single_case_left_over_joins_the_batch_before_it(seven_cases: CaseDataset) -> None:
    sizes = [len(batch.genotype) for batch in train_batches(seven_cases, batch_size=3, seed=0, epoch=0)]
    assert sizes == [3, 4]
    alone = [len(batch.genotype) for batch in train_batches(seven_cases, batch_size=1, seed=0, epoch=0)]
    assert alone == [1] * 7
