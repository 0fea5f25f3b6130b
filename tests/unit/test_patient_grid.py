"""The way back: what a network outlines on its own voxels lies on the patient's images, in their order."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import nn

from fedglioma.case import Case, Modality, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.cache import Cache, Placed
from fedglioma.data.cohort import read_cohort
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.dicom_write import PROTOCOLS, write_series
from fedglioma.data.patient_grid import PatientGrid, tumour_on, write_mask
from fedglioma.data.prepare import Prepared, PrepareSettings, prepare_cases
from fedglioma.data.volume import Volume, VolumeError
from fedglioma.losses.segmentation import SegmentationLoss
from fedglioma.training.learner import Learner
from fedglioma_client.predict_case import read_case
from fedglioma_client.predict_model import ModelIdentity, Predictor
from fedglioma_client.predict_result import TumourPrediction
from fedglioma_client.predict_write import write_tumour
from tests.predict_fixture import (
    RADIUS_MM,
    TUMOUR_MM,
    Array,
    ball,
    dice,
    grid,
    places,
    store,
    textured,
    write_patient,
)
from tests.unit.test_register import GRID, head, motion, scanned_in

IDENTITY = ModelIdentity(
    digest="0",
    run_id="tests",
    round=1,
    synthetic=False,
    network="unet",
    tasks=(Task.SEGMENTATION,),
    preprocessing="standard",
    scale_id=None,
    fedglioma="0",
)
BALL_ML = 4 / 3 * np.pi * RADIUS_MM**3 / 1000
FLAIR, T1CE, T2 = Modality.FLAIR, Modality.T1CE, Modality.T2
CUBE = grid((72, 88, 68), (2.0, 2.0, 2.0))
THICK = grid((96, 112, 36), (1.5, 1.5, 4.0))


class Knows(nn.Module):
    """A network that outlines what it was told, whatever it sees."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.logits = 20.0 * torch.stack([1 - mask.float(), mask.float()])[None]

    def forward(self, image: torch.Tensor, present: torch.Tensor) -> dict[str, torch.Tensor]:
        assert image.shape[2:] == self.logits.shape[2:]
        return {Task.SEGMENTATION: self.logits}


def prepare(folder: Path, run: RunConfig) -> Prepared:
    return prepare_cases(read_cohort(folder).cases, PrepareSettings.of(run), Cache(folder.parent / "cache"))


def brought_back(out: Path, done: Prepared, run: RunConfig) -> tuple[nib.Nifti1Image, TumourPrediction]:
    """Return what is written where the network outlines just what the expert did, on its own voxels."""
    known = CaseDataset(done.cases, run.crop, masks="whole", whole=run.sliding)[0].mask
    assert known is not None
    learner = Learner(Knows(known), SegmentationLoss())
    predictor = Predictor(learner, run, None, IDENTITY, torch.device("cpu"))
    answer = read_case(predictor, done.cases[0])
    found = write_tumour(out, done.cases[0], done.records[0], answer)
    assert found is not None
    return nib.Nifti1Image.from_filename(out / "segmentation.nii.gz"), found


def run_of(**changed: Any) -> RunConfig:
    table = {"model": "sgpnet", "preprocessing": "standard", "crop": 96, "spacing_mm": 2.0}
    return RunConfig(**(table | {"bias_correction": False} | changed))


TURNED = grid(
    (96, 104, 40), (1.7, 1.5, 4.0), Rotation.from_euler("xyz", [9, -6, 12], degrees=True).as_matrix()
)


@pytest.mark.parametrize(
    ("where", "changed", "axes"),
    [
        pytest.param(CUBE, {}, "RAS", id="cubes"),
        pytest.param(THICK, {}, "LPS", id="thick slices"),
        pytest.param(THICK, {}, "PSR", id="thick slices, sagittal first"),
        pytest.param(TURNED, {}, "SLA", id="oblique"),
        pytest.param(THICK, {"preprocessing": "sgpnet", "crop": 64}, "PIR", id="resized"),
    ],
)
def test_known_tumour_comes_back_onto_the_patients_own_voxels(
    tmp_path: Path, where: tuple[tuple[int, int, int], Array], changed: dict[str, Any], axes: str
) -> None:
    drawn = write_patient(tmp_path / "cohort", "P1", {FLAIR: where, T1CE: where}, FLAIR, axes)
    run = run_of(**changed)
    image, told = brought_back(tmp_path, prepare(tmp_path / "cohort", run), run)
    given_ = nib.Nifti1Image.from_filename(tmp_path / "cohort" / "P1" / "P1_t1ce.nii.gz")
    truth = np.asarray(nib.Nifti1Image.from_filename(drawn).dataobj) > 0
    mask = np.asarray(image.dataobj)
    assert (image.shape, image.get_data_dtype()) == (given_.shape, np.uint8)
    np.testing.assert_array_equal(image.affine, given_.affine)
    assert nib.aff2axcodes(image.affine) == tuple(axes)
    assert set(np.unique(mask)) == {0, 1}
    assert dice(mask == 1, truth) > 0.95
    assert told.volume_ml == pytest.approx(BALL_ML, rel=0.03)
    assert told.expert is not None
    assert told.expert.dice == pytest.approx(dice(mask == 1, truth), abs=1e-9)
    voxel = abs(np.linalg.det(given_.affine[:3, :3])) / 1000
    assert told.expert.volume_ml == pytest.approx(truth.sum() * voxel, abs=1e-3)
    assert (told.modality, told.axes, told.shape) == (T1CE, "stored", image.shape)


def test_tumour_drawn_on_a_moved_sequence_comes_back_onto_the_reference(tmp_path: Path) -> None:
    flair, t1ce = (head(modality, skull=False) for modality in (FLAIR, T1CE))
    index = np.stack(np.meshgrid(*map(np.arange, flair.array.shape), indexing="ij"), -1)
    middle = np.argwhere(flair.array > 0).mean(axis=0) + np.array([7, 5, 4])
    truth = ((index - middle) ** 2).sum(-1) < 8**2
    level = float(flair.array.max())
    bright = Volume(np.where(truth, 3 * level, flair.array).astype(np.float32), flair.affine)
    turned = scanned_in(bright, motion(7, 10.0, 10.0))
    shown = np.argwhere((turned.array > level / 10) | (t1ce.array > t1ce.array.max() / 10))
    box = tuple(slice(low, high) for low, high in zip(shown.min(0), shown.max(0), strict=True))
    corner = np.eye(4)
    corner[:3, 3] = shown.min(0)
    half = np.eye(4)
    half[1, 3] = 0.5  # so that the headers tell the two grids apart
    files = {m: tmp_path / f"{m}.nii.gz" for m in (FLAIR, T1CE)}
    outlined = (turned.array[box] > 2 * level).astype(np.uint8)
    nib.save(nib.Nifti1Image(turned.array[box], turned.affine @ corner @ half), files[FLAIR])
    nib.save(nib.Nifti1Image(t1ce.array[box], t1ce.affine @ corner), files[T1CE])
    nib.save(nib.Nifti1Image(outlined, turned.affine @ corner @ half), tmp_path / "seg.nii.gz")
    case = Case(patient="a", site="a", volumes=files, mask=tmp_path / "seg.nii.gz")
    run = run_of(spacing_mm=GRID.spacing[0], crop=80)
    done = prepare_cases([case], PrepareSettings.of(run), Cache(tmp_path / "cache"))
    assert done.records[0].movements[FLAIR].degrees > 8
    image, told = brought_back(tmp_path, done, run)
    assert dice(np.asarray(image.dataobj) == 1, truth[box]) > 0.9
    assert told.modality == T1CE
    assert told.expert is not None
    assert told.expert.dice is not None
    assert told.expert.dice > 0.9
    assert told.expert.volume_ml == pytest.approx(told.volume_ml, rel=0.05)


def test_dicom_is_written_right_front_top_on_the_series_own_voxels(tmp_path: Path) -> None:
    shape, affine = grid((60, 72, 30), (2.5, 2.5, 4.5), Rotation.from_euler("x", 7, degrees=True).as_matrix())
    for number, modality in enumerate((T1CE, T2), 1):
        volume = Volume(np.rint(textured(shape, affine, modality)).astype(np.float32), affine)
        write_series(
            tmp_path / "cohort" / "P1" / f"s{number}",
            volume,
            PROTOCOLS[modality],
            patient="P1",
            number=number,
        )
    (tmp_path / "cohort" / "participants.tsv").write_text("participant_id\nP1\n", encoding="utf-8")
    done = prepare(tmp_path / "cohort", run_of())
    record = done.records[0]
    found = PatientGrid.of(done.cases[0].case, record)
    assert (found.shape, found.header) == (shape, None)
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    assert nib.aff2axcodes(found.affine) == ("R", "A", "S")
    array = np.load(done.cases[0].array)[0]
    probability = ball(array.shape, np.array(record.affine)).astype(np.float32)
    mask = tumour_on(found, probability, np.array(record.affine))
    write_mask(tmp_path / "mask.nii.gz", mask, found)
    image = nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz")
    assert dice(np.asarray(image.dataobj) == 1, ball(shape, affine)) > 0.95
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-3)


@settings(deadline=None, max_examples=25)
@given(
    turn=st.tuples(*[st.floats(-40, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.8, 5.0)] * 3),
    flips=st.tuples(*[st.sampled_from((-1, 1))] * 3),
    order=st.permutations(range(3)),
)
def test_a_ball_is_the_same_ball_on_any_grid(
    turn: tuple[float, ...], spacing: tuple[float, ...], flips: tuple[int, ...], order: list[int]
) -> None:
    """Against the ball's own equation, which knows of no grid."""
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(flips)
    shape = tuple(int(np.ceil(70 / size)) for size in spacing)
    matrix = np.eye(4)
    matrix[:3, :3] = (axes @ np.diag(spacing))[:, order]
    shape = tuple(shape[axis] for axis in order)
    matrix[:3, 3] = np.array(TUMOUR_MM) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    own = np.diag([2.0, 1.5, 1.8, 1.0])
    own[:3, 3] = (-40, -60, -40)
    distance = np.linalg.norm(places((60, 70, 60), own) - TUMOUR_MM, axis=-1)
    soft = 1 / (1 + np.exp((distance - RADIUS_MM) / 1.5))
    target = PatientGrid(T1CE, (shape[0], shape[1], shape[2]), matrix)
    found = tumour_on(target, soft.astype(np.float32), own)
    assert dice(found, ball(target.shape, matrix)) > 0.97
    assert found.sum() * target.voxel_ml == pytest.approx(
        ball(target.shape, matrix).sum() * target.voxel_ml, rel=0.03
    )


def test_what_the_network_did_not_look_at_is_no_tumour(tmp_path: Path) -> None:
    write_patient(tmp_path / "cohort", "P1", {FLAIR: CUBE}, FLAIR)
    run = run_of(crop=32)
    done = prepare(tmp_path / "cohort", run)
    learner = Learner(Knows(torch.ones(32, 32, 32)), SegmentationLoss())
    answer = read_case(Predictor(learner, run, None, IDENTITY, torch.device("cpu")), done.cases[0])
    assert answer.tumour is not None
    assert answer.tumour.sum() == pytest.approx(32**3, rel=1e-5)
    brain = (np.load(done.cases[0].array) != 0).any(axis=0)
    middle = tuple(slice((n - 32) // 2, (n - 32) // 2 + 32) for n in brain.shape)
    assert answer.brain_read == pytest.approx(brain[middle].sum() / brain.sum())
    assert answer.tumour[middle].min() > 0.999


@pytest.mark.parametrize("kind", ["qform only", "sform only", "nifti 2", "uncompressed"])
def test_geometry_of_the_header_is_kept_as_it_is_and_its_texts_are_not(tmp_path: Path, kind: str) -> None:
    shape, affine = grid((20, 24, 18), (7.0, 7.5, 8.0), Rotation.from_euler("y", 5, degrees=True).as_matrix())
    make = nib.Nifti2Image if kind == "nifti 2" else nib.Nifti1Image
    image = make(textured(shape, affine, T1CE), affine)
    image.set_qform(affine, code=0 if kind == "sform only" else 1)
    image.set_sform(affine, code=0 if kind == "qform only" else 2)
    image.header["descrip"] = b"JANE^DOE"
    path = tmp_path / ("a.nii" if kind == "uncompressed" else "a.nii.gz")
    nib.save(image, path)
    case = Case(patient="a", site="a", volumes={T1CE: path})
    done = prepare_cases(
        [case], PrepareSettings(spacing_mm=8.0, correct_bias=False), Cache(tmp_path / "cache")
    )
    found = PatientGrid.of(case, done.records[0])
    write_mask(tmp_path / "mask.nii.gz", np.ones(shape, bool), found)
    written, before = nib.Nifti1Image.from_filename(tmp_path / "mask.nii.gz"), type(image).from_filename(path)
    np.testing.assert_allclose(written.affine, before.affine, atol=1e-5)
    assert [int(written.header[name]) for name in ("qform_code", "sform_code")] == [
        int(before.header[name]) for name in ("qform_code", "sform_code")
    ]
    assert bytes(written.header["descrip"].tobytes()).strip(b"\0") == b""


def test_file_that_changed_after_preparation_is_refused(tmp_path: Path) -> None:
    shape, affine = CUBE
    store(tmp_path / "a.nii.gz", textured(shape, affine, T1CE), affine)
    case = Case(patient="a", site="a", volumes={T1CE: tmp_path / "a.nii.gz"})
    done = prepare_cases(
        [case], PrepareSettings(spacing_mm=8.0, correct_bias=False), Cache(tmp_path / "cache")
    )
    record = done.records[0]
    elsewhere = affine.copy()
    elsewhere[0, 3] += 3
    moved = record.grids[T1CE].model_copy(update={"affine": tuple(map(tuple, elsewhere.tolist()))})
    with pytest.raises(VolumeError, match="the file changed"):
        PatientGrid.of(case, record.model_copy(update={"grids": {T1CE: moved}}))
    other = Placed(shape=(1, 2, 3), affine=moved.affine)
    with pytest.raises(VolumeError, match="the file changed"):
        PatientGrid.of(case, record.model_copy(update={"grids": {T1CE: other}}))
