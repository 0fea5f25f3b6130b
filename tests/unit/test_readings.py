"""What is measured of an outline: all of the prepared grid, however much of it a network is shown."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor, nn

from fedglioma.case import Case, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.window import centre_starts, put_back
from fedglioma.losses.segmentation import SegmentationLoss
from fedglioma.training.learner import Learner
from fedglioma_server.readings import predictions_of

SHAPE = (24, 20, 12)
"""Larger than a crop of 16 along two axes, smaller along the third."""
SPACING = (1.0, 2.0, 3.0)
CROP = 16


class Bright(nn.Module):
    """A network that takes for tumour what is bright on FLAIR, and the zeros around a small volume too."""

    def forward(self, image: Tensor, _present: Tensor) -> dict[str, Tensor]:
        said = torch.where((image[:, 0] > 1) | (image[:, 0] == 0), 5.0, -5.0)
        return {Task.SEGMENTATION.value: torch.stack((-said, said), dim=1)}


def outlined(folder: Path, number: int, *, mask: bool = True) -> PreparedCase:
    """A case with a bright ball in the middle and another in a corner that no centre crop holds."""
    where = np.stack(np.indices(SHAPE), -1)
    middle, corner = (((where - place) ** 2).sum(-1) < 16 for place in ((12, 9, 6), (1, 1, 1)))
    volume = np.full((4, *SHAPE), 0.5, np.float16)
    volume[0][middle | corner] = 2
    np.save(folder / f"{number}.npy", volume)
    np.save(folder / f"{number}_mask.npy", (middle | corner).astype(np.uint8))
    return PreparedCase(
        case=Case(patient=f"p{number}", site="a", volumes={}),
        array=folder / f"{number}.npy",
        present=(True,) * 4,
        digest=str(number),
        percentiles={},
        spacing_mm=SPACING,
        mask=folder / f"{number}_mask.npy" if mask else None,
    )


def tumours(folder: Path, inference: str, *, mask: bool = True) -> np.ndarray:
    settings = RunConfig(model="unet", crop=CROP, inference=inference)  # type: ignore[arg-type]
    learner = Learner(Bright(), SegmentationLoss())
    cases = [outlined(folder, 0, mask=mask)]
    found = predictions_of(learner, settings, cases, ["report"], torch.device("cpu")).tumours
    assert found is not None
    return found[0]


def surface(mask: np.ndarray) -> np.ndarray:
    return mask & ~binary_erosion(mask)


def test_outline_of_a_centre_crop_is_compared_with_all_that_was_outlined(tmp_path: Path) -> None:
    truth = np.load(outlined(tmp_path, 0).mask) > 0
    seen = truth.copy()
    seen[:4] = False  # the crop has voxels 4 to 19 of 24 and 2 to 17 of 20
    seen[20:] = False
    seen[:, :2] = False
    seen[:, 18:] = False
    far = distance_transform_edt(~surface(seen), sampling=SPACING)[surface(truth)]
    near = distance_transform_edt(~surface(truth), sampling=SPACING)[surface(seen)]
    expected = [
        2 * seen.sum() / (seen.sum() + truth.sum()),
        max(np.percentile(far, 95), np.percentile(near, 95)),
        seen.sum() * 6 / 1000,
        truth.sum() * 6 / 1000,
    ]
    assert 0 < seen.sum() < truth.sum()
    np.testing.assert_allclose(tumours(tmp_path, "centre"), expected)


def test_experts_own_volume_is_the_same_however_images_are_read(tmp_path: Path) -> None:
    centre, sliding = tumours(tmp_path, "centre"), tumours(tmp_path, "sliding")
    assert centre[3] == sliding[3]
    np.testing.assert_allclose(sliding, [1, 0, sliding[3], sliding[3]])
    assert centre[0] < 1


def test_what_is_found_in_the_padding_of_a_crop_is_no_tumour(tmp_path: Path) -> None:
    """Without an outline too: the volume that is told is the brain's."""
    with_mask, without = tumours(tmp_path, "centre"), tumours(tmp_path, "centre", mask=False)
    assert without[2] == with_mask[2]
    assert np.isnan(without[[0, 1, 3]]).all()


@pytest.mark.parametrize("box", [(4, 4, 4), (7, 3, 5), (16, 16, 16)])
def test_box_is_put_back_where_it_was_cut_out(box: tuple[int, int, int]) -> None:
    shape = (9, 6, 5)
    volume = np.arange(1, 1 + np.prod(shape)).reshape(shape)
    wide = np.pad(volume, 16)
    starts = centre_starts(shape, box)
    cube = wide[tuple(slice(16 + start, 16 + start + edge) for start, edge in zip(starts, box, strict=True))]
    whole = put_back(cube, shape)
    inside = np.isin(volume, cube)
    np.testing.assert_array_equal(whole, np.where(inside, volume, 0))
