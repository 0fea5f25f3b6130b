"""The inference loop: what it keeps of each case, and what stays NaN."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedglioma.case import GENES, UNKNOWN, Task
from fedglioma.data.dataset import Sample
from fedglioma.losses.segmentation import SegmentationLoss, SGPLoss
from fedglioma.losses.tasks import Targets, TaskLoss
from fedglioma.training.inference import Reader
from fedglioma.training.predict import Scores, Seen, predict

CPU = torch.device("cpu")
EDGE = 4


class Fixed(nn.Module):
    """A network that reads both answers from the image: IDH from a corner, the tumour from each voxel."""

    def __init__(self, *tasks: Task) -> None:
        super().__init__()
        self.tasks = tasks

    def forward(self, image: Tensor, _present: Tensor) -> dict[str, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        said = {
            Task.IDH: torch.stack((-image[:, 1, 0, 0, 0], image[:, 1, 0, 0, 0]), dim=1),
            Task.SEGMENTATION: torch.stack((-image[:, 0], image[:, 0]), dim=1),
        }
        return {task.value: said[task] for task in self.tasks}


BOTH = (Task.IDH, Task.SEGMENTATION)


def cube(low: int, high: int) -> Tensor:
    found = torch.zeros(EDGE, EDGE, EDGE, dtype=torch.bool)
    found[low:high] = True
    return found


def case(found: Tensor, mask: Tensor | None, idh: int) -> Sample:
    image = torch.zeros(4, EDGE, EDGE, EDGE)
    image[0] = torch.where(found, 2.0, -2.0)
    image[1] = idh + 0.5
    drawn = torch.full((EDGE,) * 3, UNKNOWN, dtype=torch.int8) if mask is None else mask.to(torch.int8)
    return Sample(image, torch.ones(4), torch.tensor([idh, UNKNOWN, UNKNOWN]), drawn)


FIVE = [
    case(cube(0, 2), cube(0, 2), 1),  # all of it
    case(cube(0, 2), cube(1, 4), 0),  # 16 of 32 + 48 voxels
    case(cube(0, 2), cube(0, 0), UNKNOWN),  # nobody has a tumour where one is seen
    case(cube(0, 0), cube(0, 0), 1),  # nothing to find, nothing found
    case(cube(0, 2), None, 0),  # nobody outlined it
]


def batches(cases: list[Sample], *sizes: int, masks: bool = True) -> list[Sample]:
    found, start = [], 0
    for size in sizes:
        part = cases[start : start + size]
        image, present, genotype, mask = (torch.stack(list(field)) for field in zip(*part, strict=True))
        found.append(Sample(image, present, genotype, mask if masks else None))
        start += size
    return found


def read(tasks: tuple[Task, ...], loss: TaskLoss | None = None, seen: Seen | None = None) -> Scores:
    return predict(Fixed(*tasks), batches(FIVE, 2, 2, 1), device=CPU, loss=loss, seen=seen)


def test_dice_is_the_overlap_where_somebody_outlined_and_either_sees_a_tumour() -> None:
    np.testing.assert_array_equal(read(BOTH).dice, [1.0, 2 * 16 / (32 + 48), 0.0, np.nan, np.nan])


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (3, 2)])
def test_scores_do_not_depend_on_the_batches(sizes: tuple[int, ...]) -> None:
    one, other = (
        read(BOTH, SGPLoss()),
        predict(Fixed(*BOTH), batches(FIVE, *sizes), device=CPU, loss=SGPLoss()),
    )
    for ours, theirs in zip(
        (one.logits, one.labels, one.losses, one.dice),
        (other.logits, other.labels, other.losses, other.dice),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_losses_are_those_of_each_case_alone_and_nan_where_unknown() -> None:
    loss = SGPLoss()
    found = read(BOTH, loss).losses
    expected = np.empty((5, 2))
    for place, one in enumerate(FIVE):
        image, present, genotype, mask = (field.unsqueeze(0) for field in one if field is not None)
        with torch.no_grad():
            outputs = Fixed(*BOTH).eval()(image, present)
        expected[place] = loss.per_task(outputs, Targets(genotype, mask))[0].numpy()
    expected[2, 0] = np.nan  # IDH unknown
    expected[4, 1] = np.nan  # no outline
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_genes_that_are_not_asked_and_tumours_that_are_not_drawn_stay_nan() -> None:
    scores = read((Task.IDH,))
    assert scores.logits.shape == (5, len(GENES), 2)
    assert not scores.logits[:, 0].isnan().any()
    assert scores.logits[:, 1:].isnan().all()
    assert np.isnan(scores.dice).all()
    segmented = read((Task.SEGMENTATION,), SegmentationLoss())
    assert segmented.logits.isnan().all()
    assert segmented.losses.shape == (5, 1)


def test_probability_is_that_of_the_second_class() -> None:
    found = read(BOTH).probabilities[:, 0].numpy()
    logit = np.array([one.image[1, 0, 0, 0] for one in FIVE])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-2 * logit)), rtol=1e-6)


def test_without_a_loss_there_are_no_columns_of_losses() -> None:
    assert read(BOTH).losses.shape == (5, 0)


def test_masks_that_were_not_asked_for_give_no_dice() -> None:
    scores = predict(Fixed(*BOTH), batches(FIVE, 5, masks=False), device=CPU)
    assert np.isnan(scores.dice).all()


def test_each_segmentation_is_seen_once_and_in_order() -> None:
    seen: list[tuple[int, Tensor]] = []
    read(BOTH, seen=lambda place, tumour, _outlined: seen.append((place, torch.from_numpy(tumour))))
    assert [place for place, _ in seen] == [0, 1, 2, 3, 4]
    for (_, tumour), one in zip(seen, FIVE, strict=True):
        assert tumour.dtype is torch.bool
        assert torch.equal(tumour, one.image[0] > 0)


def test_network_that_draws_nothing_has_nothing_seen() -> None:
    seen: list[int] = []
    read((Task.IDH,), seen=lambda place, _tumour, _outlined: seen.append(place))
    assert not seen


def test_progress_counts_the_cases_that_are_through() -> None:
    counts: list[int] = []
    predict(Fixed(*BOTH), batches(FIVE, 2, 2, 1), device=CPU, done=counts.append)
    assert counts == [2, 4, 5]


def test_no_case_gives_empty_scores() -> None:
    scores = predict(Fixed(*BOTH), [], device=CPU, loss=SGPLoss())
    assert (scores.logits.shape, scores.labels.shape) == ((0, 3, 2), (0, 3))
    assert (scores.losses.shape, scores.dice.shape) == ((0, 2), (0,))


def test_cases_are_read_as_they_are_asked_to_be() -> None:
    flipped = predict(Fixed(*BOTH), batches(FIVE, 2, 2, 1), device=CPU, reader=Reader(flips=True))
    np.testing.assert_array_equal(flipped.dice, read(BOTH).dice)  # voxel by voxel, a mirror changes nothing
    torch.testing.assert_close(flipped.probabilities[:, 0], read(BOTH).probabilities[:, 0])
