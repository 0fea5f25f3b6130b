"""The only training loop: batches in, a trained model and what it cost out."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedglioma.case import GENES, Gene
from fedglioma.data.dataset import Sample
from fedglioma.errors import FedGliomaError
from fedglioma.losses.multitask import GenotypeLoss


@dataclass
class FitSummary:
    """What an epoch, or several added up, did."""

    steps: int = 0
    cases: int = 0
    loss_sum: float = 0.0
    gene_sums: dict[Gene, float] = field(default_factory=lambda: dict.fromkeys(GENES, 0.0))
    gene_cases: dict[Gene, int] = field(default_factory=lambda: dict.fromkeys(GENES, 0))
    load_s: float = 0.0
    train_s: float = 0.0

    @property
    def loss(self) -> float | None:
        """Mean training loss per case, None when there was no case."""
        return self.loss_sum / self.cases if self.cases else None

    def loss_by_gene(self) -> dict[Gene, float | None]:
        """Mean unweighted loss per gene over its known labels, None where no label is known."""
        return {g: self.gene_sums[g] / n if (n := self.gene_cases[g]) else None for g in GENES}


def parameter_groups(model: nn.Module, loss: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return optimizer groups: weight decay on the weights of convolutions and linear maps only.

    Norms, biases, positions and the uncertainty weights are scales and offsets; pulling them to zero
    is no regularisation, and the uncertainty weights would be dragged from their optimum.
    """
    decayed: list[nn.Parameter] = []
    free = list(loss.parameters())
    for module in model.modules():
        kernels = isinstance(module, nn.Conv3d | nn.Linear)
        for name, parameter in module.named_parameters(recurse=False):
            (decayed if kernels and name == "weight" else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def fit_epoch(
    model: nn.Module,
    loss: GenotypeLoss,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sample],
    *,
    device: torch.device,
    penalty: Callable[[], Tensor] | None = None,
    summary: FitSummary | None = None,
) -> FitSummary:
    """Train one epoch and return what it did, added to ``summary`` where one is given.

    Parameters
    ----------
    batches : iterable of Sample
        image (B, 4, D, H, W) float32, present (B, 4), genotype (B, 3) with -1 for unknown.
    penalty : callable, optional
        A term added to every batch's loss, as FedProx does.

    Raises
    ------
    FedGliomaError
        The loss is no longer a finite number.
    """
    summary = summary or FitSummary()
    model.train()
    loss.train()
    waiting_since = time.perf_counter()
    for batch in batches:
        started = time.perf_counter()
        summary.load_s += started - waiting_since
        image, present, genotype = (tensor.to(device, non_blocking=True) for tensor in batch[:3])
        logits = model(image, present)
        value = loss(logits, genotype)
        objective = value if penalty is None else value + penalty()
        number = float(objective.detach())
        if not torch.isfinite(objective.detach()):
            raise FedGliomaError(f"training diverged: the loss became {number} at step {summary.steps + 1}")
        optimizer.zero_grad(set_to_none=True)
        objective.backward()
        optimizer.step()
        _count(summary, float(value.detach()), loss, logits, genotype)
        waiting_since = time.perf_counter()
        summary.train_s += waiting_since - started
    return summary


def _count(
    summary: FitSummary, value: float, loss: GenotypeLoss, logits: Mapping[str, Tensor], genotype: Tensor
) -> None:
    size = genotype.shape[0]
    summary.steps += 1
    summary.cases += size
    summary.loss_sum += value * size
    with torch.no_grad():
        per_gene = loss.per_gene({name: z.detach() for name, z in logits.items()}, genotype).sum(0).tolist()
    known = (genotype >= 0).sum(0).tolist()
    for index, gene in enumerate(GENES):
        summary.gene_sums[gene] += per_gene[index]
        summary.gene_cases[gene] += int(known[index])
