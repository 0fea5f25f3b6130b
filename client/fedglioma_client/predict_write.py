"""The files of one patient's result."""

from pathlib import Path

import numpy as np

from fedglioma.data.cache import Record
from fedglioma.data.patient_grid import PatientGrid, expert_on, tumour_on, write_mask
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.volume import Mask
from fedglioma.metrics.segmentation import dice
from fedglioma_client.predict_case import Answer
from fedglioma_client.predict_folder import DATA_NAME, MASK_NAME, OVERVIEW_NAME, PAGE_NAME, write_private
from fedglioma_client.predict_page import render
from fedglioma_client.predict_pictures import Slices
from fedglioma_client.predict_result import ExpertComparison, Prediction, TumourPrediction


def write_tumour(
    folder: Path, prepared: PreparedCase, record: Record, answer: Answer
) -> TumourPrediction | None:
    """Write the tumour on the patient's own grid and return its figures; None where none is outlined.

    Raises
    ------
    VolumeError
        The reference image or the expert's mask changed since they were prepared.
    OSError
        The folder cannot be written.
    """
    if answer.tumour is None:
        return None
    grid = PatientGrid.of(prepared.case, record)
    mask = tumour_on(grid, answer.tumour, np.array(record.affine))
    write_mask(folder / MASK_NAME, mask, grid)
    expert = None
    if prepared.case.mask is not None:
        drawn = expert_on(grid, prepared.case.mask, record)
        expert = ExpertComparison(volume_ml=_ml(drawn, grid), dice=dice(mask, drawn))
    return TumourPrediction(
        file=MASK_NAME,
        modality=grid.modality,
        axes="ras" if grid.header is None else "stored",
        shape=grid.shape,
        affine=tuple(tuple(row) for row in grid.affine.tolist()),
        volume_ml=_ml(mask, grid),
        expert=expert,
    )


def write_pages(
    folder: Path, result: Prediction, prepared: PreparedCase, record: Record, answer: Answer
) -> None:
    """Write the result for machines and for people; raises ``OSError`` where that cannot be."""
    slices = Slices.of(prepared, record, answer.tumour)
    write_private(folder / DATA_NAME, result.model_dump_json(indent=1).encode() + b"\n")
    write_private(folder / OVERVIEW_NAME, slices.overview())
    write_private(folder / PAGE_NAME, render(result, slices.pictures()).encode())


def _ml(mask: Mask, grid: PatientGrid) -> float:
    return round(float(np.count_nonzero(mask)) * grid.voxel_ml, 3)
