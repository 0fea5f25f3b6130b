"""What a MONAI bundle does with its answers: outlines as NIfTI, probabilities as JSON and CSV."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fedglioma.case import GENES, Task
from fedglioma.data.patient_grid import tumour_on, write_mask
from fedglioma.data.volume import FloatArray
from fedglioma.errors import DataError
from fedglioma.newfile import PRIVATE, replacing
from fedglioma.training.bundle_parts import ID, REFUSED, BundleNetwork, Inferer
from fedglioma.words import cell

logger = logging.getLogger(__name__)

STATEMENT: Final = "Research use only. Not a medical device. Not for diagnosis or treatment."
COLUMNS: Final = (
    "case",
    "modalities",
    *(f"p_{gene.value}" for gene in GENES),
    "tumour_ml",
    "outline",
    REFUSED,
)

Item = dict[str, Any]


class Save:
    """MONAI transform: an item with its answer ``pred`` -> its row; the outline goes to ``output_dir``.

    The outline lies on the voxels of the sequence that the others were laid over, as its file has them.
    """

    def __init__(self, network: BundleNetwork, output_dir: str | Path) -> None:
        self.settings = network.settings
        self.folder = Path(output_dir)
        self.names: set[str] = set()

    def __call__(self, item: Mapping[str, Any]) -> Item:
        """Return the row of ``predictions.json``: probabilities of mutant or codeleted, volume, file.

        Raises
        ------
        DataError
            The answer is not a finite number.
        """
        row: Item = {"case": item[ID], "modalities": item["modalities"]}
        if REFUSED in item:
            return {**row, REFUSED: item[REFUSED]}
        pred: Tensor = item["pred"]
        if not bool(torch.isfinite(pred).all()):
            raise DataError("the network's answer is not a finite number; are these the released weights?")
        outlines = Task.SEGMENTATION in self.settings.tasks
        ones = pred[(2 if outlines else 0) :].flatten(1)[:, 0] if outlines else pred
        for number, gene in enumerate(self.settings.genes):
            row[f"p_{gene.value}"] = float(ones[2 * number + 1])
        if outlines:
            row |= self._outlined(item, pred[1].numpy())
        return {**row, "remarks": list(item["remarks"])}

    def _outlined(self, item: Mapping[str, Any], probability: FloatArray) -> Item:
        grid = item["grid"]
        tumour = tumour_on(grid, probability, item["affine"])
        name = f"{self._free(str(item[ID]))}_seg.nii.gz"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_mask(self.folder / name, tumour, grid)
        return {"tumour_ml": round(float(tumour.sum()) * grid.voxel_ml, 4), "outline": name}

    def _free(self, name: str) -> str:
        """Return an id as part of a file's name, a number behind it where another case has it already."""
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100] or "case"
        number, free = 1, safe
        while free.lower() in self.names:
            number += 1
            free = f"{safe}-{number}"
        self.names.add(free.lower())
        return free


class Evaluator:
    """Reads every case of a data set and writes ``predictions.json`` and ``predictions.csv``.

    Stands where MONAI's own evaluator would, which needs pytorch-ignite and stops at the first case that
    cannot be used.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        network: BundleNetwork,
        inferer: Inferer,
        postprocessing: Callable[[Item], Item],
        device: torch.device | str,
        output_dir: str | Path,
    ) -> None:
        self.dataset = dataset
        self.network = network
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.device = torch.device(device)
        self.folder = Path(output_dir)

    def run(self) -> list[Item]:
        """Return the rows of all cases, in their order, once they are written.

        Raises
        ------
        DataError
            There is no case, none of them can be used, or an answer is not a finite number.
        """
        if not len(self.dataset):
            raise DataError("no case to read; give --dataset_dir or --data_list_file")
        self.network.to(self.device).eval()
        rows = [self.postprocessing(self._answered(dict(self.dataset[i]))) for i in range(len(self.dataset))]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_json(rows)
        self._write_csv(rows)
        refused = sum(REFUSED in row for row in rows)
        logger.info("%d cases read, %d refused; %s", len(rows) - refused, refused, STATEMENT)
        if refused == len(rows):
            raise DataError(f"none of {refused} cases can be used; predictions.json says why")
        if refused:
            logger.warning("%d cases cannot be used; predictions.json says why", refused)
        return rows

    @torch.no_grad()
    def _answered(self, item: Item) -> Item:
        if REFUSED in item:
            return item
        image, present = (item[key][None].to(self.device) for key in ("image", "present"))
        return {**item, "pred": self.inferer(image, self.network, present)[0].float().cpu()}

    def _write_json(self, rows: list[Item]) -> None:
        told = {"schema_version": 1, "statement": STATEMENT, "cases": rows}
        with replacing(self.folder / "predictions.json", mode=PRIVATE) as file:
            file.write(json.dumps(told, indent=2, allow_nan=False).encode() + b"\n")

    def _write_csv(self, rows: list[Item]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_shown(row.get(column)) for column in COLUMNS])
        with replacing(self.folder / "predictions.csv", mode=PRIVATE) as file:
            file.write(text.getvalue().encode())


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else cell(str(value))
