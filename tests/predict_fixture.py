"""Untrained models and small cohorts for the tests of ``fedglioma-client predict``."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from fedglioma.case import GENES, Modality
from fedglioma.config.run import RunConfig
from fedglioma.training.learner import initial_learner, layout_of
from fedglioma.weights import pack
from fedglioma_server.records import HeldOutRound, RoundRecord, RunRecord, SiteData
from fedglioma_server.release import write_model

Array = npt.NDArray[Any]

COUNTS = dict.fromkeys(GENES, (7.5, 4.0))
SMALL: dict[str, Any] = {"spacing_mm": 8.0, "bias_correction": False, "standardize": "zscore"}
MODELS: dict[str, dict[str, Any]] = {
    "mdpnet": SMALL | {"width": 1, "crop": 16},
    "sgpnet": SMALL | {"model": "sgpnet", "width": 2, "crop": 32},
    "unet": SMALL | {"model": "unet", "width": 1, "crop": 16},
}
"""Of each kind one: markers only; markers and tumour, resized; tumour only, by sliding windows."""


def write_untrained(folder: Path, settings: RunConfig, *, synthetic: bool = False, made_by: str = "") -> Path:
    """Write a released model as a run does, without training it."""
    learner = initial_learner(settings, COUNTS)
    data = SiteData(cases=5, labels=dict.fromkeys(GENES, (5, 5, 0)), modalities={}, small_cell_limit=5)
    record = RunRecord(
        run_id="tests",
        created="2026-01-01T00:00:00+00:00",
        engine="inline",
        command="tests",
        synthetic=synthetic,
        versions={"fedglioma": made_by or version("fedglioma")},
        settings=settings,
        cohorts=["a"],
        data_digest="0" * 64,
        parameters=1,
        payload_bytes=20,
        splits={},
        sites={"north": data},
        class_counts=COUNTS,
    )
    nothing = dict.fromkeys(GENES)
    chosen = RoundRecord(
        round=2, heldout=HeldOutRound(cases=3, loss=1.0, loss_by_task=nothing, auc=nothing, accuracy=nothing)
    )
    write_model(folder, record, chosen, pack(learner.model, learner.loss), layout_of(settings))
    return folder


BRAIN_MM = (62.0, 78.0, 58.0)
TUMOUR_MM = (18.0, -12.0, 10.0)
RADIUS_MM = 24.0


def places(shape: tuple[int, int, int], affine: Array) -> Array:
    """Return the RAS mm of each voxel, shape (X, Y, Z, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def ball(shape: tuple[int, int, int], affine: Array) -> npt.NDArray[np.bool_]:
    """Return where the tumour of a made-up patient is."""
    inside: npt.NDArray[np.bool_] = ((places(shape, affine) - TUMOUR_MM) ** 2).sum(-1) < RADIUS_MM**2
    return inside


def textured(shape: tuple[int, int, int], affine: Array, modality: Modality) -> npt.NDArray[np.float32]:
    """Return an ellipsoid of a brain with smooth texture, zero outside it, at the same place on any grid."""
    where = places(shape, affine)
    inside = ((where / BRAIN_MM) ** 2).sum(-1) < 1
    x, y, z = np.moveaxis(where, -1, 0)
    texture = np.sin(x / 9 + y / 31) + np.sin(y / 11 - z / 27) + np.sin(z / 8 + x / 35)
    number = 1 + list(Modality).index(modality)
    own = np.sin((x - y + z) / (10 + number) + number)
    signed = -texture if modality is Modality.T2 else texture
    noise = np.random.default_rng(number).normal(0, 0.02, shape)
    return np.where(inside, 500 + 100 * (signed + own + noise), 0).astype(np.float32)


def write_patient(
    folder: Path,
    patient: str,
    grids: dict[Modality, tuple[tuple[int, int, int], Array]],
    drawn_on: Modality,
    axes: str = "RAS",
) -> Path:
    """Write a patient with a mask in one cohort, the files stored with these axes; return the mask."""
    (folder / patient).mkdir(parents=True)
    (folder / "participants.tsv").write_text(f"participant_id\n{patient}\n", encoding="utf-8")
    for modality, (shape, affine) in grids.items():
        store(
            folder / patient / f"{patient}_{modality}.nii.gz", textured(shape, affine, modality), affine, axes
        )
    path = folder / patient / f"{patient}_seg.nii.gz"
    shape, affine = grids[drawn_on]
    store(path, ball(shape, affine).astype(np.uint8), affine, axes)
    return path


def store(path: Path, array: Array, affine: Array, axes: str = "RAS") -> None:
    image = nib.Nifti1Image(array, affine)
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axes))
        )
    )
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)


def grid(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], turn: Array | None = None
) -> tuple[tuple[int, int, int], Array]:
    """Return a grid about the origin."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return shape, affine


def dice(one: Array, other: Array) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


Change = Callable[[dict[str, Any]], object]
