"""The only inference loop: batches in, what the network says of each case out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedglioma.case import GENES, UNKNOWN, Task
from fedglioma.data.dataset import CaseDataset, Sample
from fedglioma.data.window import put_back
from fedglioma.losses.tasks import Targets, TaskLoss
from fedglioma.metrics.segmentation import dice
from fedglioma.training.inference import Reader

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Outputs of a model for n cases, in the order of the batches.

    ``logits`` is (n, genes, 2) float32, NaN for a gene that the network is not asked; ``labels`` (n, genes)
    int64 with -1 for unknown. ``losses`` (n, tasks) float64 has each case's loss of each task, NaN where the
    target is unknown. ``dice`` (n,) is the overlap with the tumour as it was outlined, NaN where nobody
    did, where the network does not segment, or where both are empty.
    """

    logits: Tensor
    labels: Tensor
    losses: FloatArray
    dice: FloatArray

    @property
    def probabilities(self) -> Tensor:
        """Probability of mutant or codeleted, (n, genes)."""
        return self.logits.softmax(2)[..., 1]


Seen = Callable[[int, BoolArray, BoolArray | None], None]
"""Told of each case's place, of the tumour as it was found and as it was outlined, both (D, H, W)."""


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[Sample],
    *,
    device: torch.device,
    loss: TaskLoss | None = None,
    reader: Reader | None = None,
    done: Callable[[int], None] | None = None,
    measured_in: CaseDataset | None = None,
    seen: Seen | None = None,
) -> Scores:
    """Return the model's outputs for every case; ``done`` is told how many are through.

    Parameters
    ----------
    loss : TaskLoss, optional
        Without it ``losses`` has no columns.
    reader : Reader, optional
        How a case is read; by default in one piece, as it comes.
    measured_in : CaseDataset, optional
        The cases behind the batches. Tumours are then put back into their whole volumes and compared with
        all that was outlined there; without it, with the masks of the batches.
    seen : callable, optional
        See ``Seen``.
    """
    model.eval()
    reader = reader or Reader()
    parts: list[Scores] = []
    count = 0
    for batch in batches:
        outputs = reader.read(model, batch.image.to(device), batch.present.to(device))
        outputs = {name: value.float().cpu() for name, value in outputs.items()}
        parts.append(
            Scores(
                torch.stack([_of_gene(outputs, gene.value, len(batch.genotype)) for gene in GENES], dim=1),
                batch.genotype,
                _losses(loss, outputs, batch),
                _overlaps(outputs.get(Task.SEGMENTATION), batch, count, measured_in, seen),
            )
        )
        count += len(batch.genotype)
        if done is not None:
            done(count)
    return _joined(parts, 0 if loss is None else len(loss.tasks))


def _of_gene(outputs: dict[str, Tensor], gene: str, cases: int) -> Tensor:
    return outputs[gene] if gene in outputs else torch.full((cases, 2), torch.nan)


def _losses(loss: TaskLoss | None, outputs: dict[str, Tensor], batch: Sample) -> FloatArray:
    if loss is None:
        return np.empty((len(batch.genotype), 0))
    targets = Targets(batch.genotype, batch.mask)
    values: FloatArray = loss.cpu().per_task(outputs, targets).double().numpy()
    known = np.stack([targets.known(task).numpy() for task in loss.tasks], axis=1)
    return np.where(known, values, np.nan)


def _overlaps(
    logits: Tensor | None, batch: Sample, first: int, dataset: CaseDataset | None, seen: Seen | None
) -> FloatArray:
    values = np.full(len(batch.genotype), np.nan)
    if logits is None:
        return values
    for place, tumour in enumerate((logits.argmax(1) == 1).numpy()):
        if dataset is None:
            found, expert = tumour, _in_batch(batch, place)
        else:
            found = put_back(tumour, dataset.shape(first + place))
            expert = dataset.outline(first + place)
        if seen is not None:
            seen(first + place, found, expert)
        overlap = None if expert is None else dice(found, expert)
        values[place] = np.nan if overlap is None else overlap
    return values


def _in_batch(batch: Sample, place: int) -> BoolArray | None:
    if batch.mask is None or int(batch.mask[place].flatten()[0]) == UNKNOWN:
        return None
    outlined: BoolArray = (batch.mask[place] == 1).numpy()
    return outlined


def _joined(parts: list[Scores], tasks: int) -> Scores:
    if not parts:
        return Scores(
            torch.zeros(0, len(GENES), 2),
            torch.zeros(0, len(GENES), dtype=torch.int64),
            np.empty((0, tasks)),
            np.empty(0),
        )
    return Scores(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.labels for part in parts]),
        np.concatenate([part.losses for part in parts]),
        np.concatenate([part.dice for part in parts]),
    )
