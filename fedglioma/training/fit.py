"""The only training loop: batches in, a trained model and what it cost out."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedglioma.case import GENES, Task
from fedglioma.data.dataset import Sample
from fedglioma.errors import Diverged
from fedglioma.losses.tasks import Targets
from fedglioma.training.precision import Precision

LOOK_EVERY = 32
"""Steps on a GPU between looks at the loss: each look waits until the GPU has caught up."""

LEAST_SCALE = 1.0
"""Gradients that overflow in float16 without being scaled up are no matter of scale."""


@dataclass
class FitSummary:
    """What an epoch, or several added up, did."""

    steps: int = 0
    cases: int = 0
    loss_sum: float = 0.0
    task_sums: dict[Task, float] = field(default_factory=dict)
    task_cases: dict[Task, int] = field(default_factory=dict)
    load_s: float = 0.0
    train_s: float = 0.0

    @property
    def loss(self) -> float | None:
        """Mean training loss per case, None when there was no case."""
        return self.loss_sum / self.cases if self.cases else None

    def loss_by_task(self) -> dict[Task, float | None]:
        """Mean unweighted loss per task over its known targets, None where none is known."""
        return {task: self.task_sums[task] / n if n else None for task, n in self.task_cases.items()}


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process trains on, of several that train together.

    ``rows`` of a batch of B cases are rank, rank + world, ...; the loss is divided by B and multiplied by
    ``world``, because data parallelism takes the mean of the processes' gradients.
    """

    rank: int = 0
    world: int = 1

    def of(self, batch: Sample) -> Sample:
        """Return this process's cases of a batch."""
        if self.world == 1:
            return batch
        rows = slice(self.rank, None, self.world)
        mask = None if batch.mask is None else batch.mask[rows]
        return Sample(batch.image[rows], batch.present[rows], batch.genotype[rows], mask)


def parameter_groups(
    model: nn.Module, loss: nn.Module, weight_decay: float, head_lr: float = 1.0
) -> list[dict[str, object]]:
    """Return optimizer groups: weight decay on the weights of convolutions and linear maps only.

    Norms, biases, positions and the uncertainty weights are scales and offsets; pulling them to zero
    is no regularisation, and the uncertainty weights would be dragged from their optimum. Layers of one
    marker alone (``heads.<gene>``) have ``head_lr`` times the learning rate; each group's ``scale`` says so.
    What is frozen is in no group.
    """
    decayed: dict[float, list[nn.Parameter]] = {1.0: []}
    free: dict[float, list[nn.Parameter]] = {1.0: list(loss.parameters())}
    for path, module in model.named_modules():
        kernels = isinstance(module, _ConvNd | nn.Linear)  # transposed ones too: MONAI's segmenters
        scale = head_lr if _belongs_to_a_gene(path) else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                into = decayed if kernels and name == "weight" else free
                into.setdefault(scale, []).append(parameter)
    groups = [(decayed, weight_decay), (free, 0.0)]
    return [
        {"params": parameters, "weight_decay": decay, "scale": scale}
        for table, decay in groups
        for scale, parameters in table.items()
    ]


def _belongs_to_a_gene(path: str) -> bool:
    parts = path.split(".")
    return len(parts) > 1 and parts[0] == "heads" and parts[1] in [gene.value for gene in GENES]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)


def fit_epoch(
    objective: nn.Module,
    tasks: Sequence[Task],
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sample],
    *,
    precision: Precision,
    scaler: torch.amp.GradScaler | None = None,
    accumulate: int = 1,
    channels_last: bool = False,
    penalty: Callable[[], Tensor] | None = None,
    share: Share | None = None,
    summary: FitSummary | None = None,
) -> FitSummary:
    """Train one epoch and return what it did, added to ``summary`` where one is given.

    Parameters
    ----------
    objective : module
        A ``learner.Objective``, or the same wrapped for data parallelism or compiled.
    tasks : sequence of Task
        Columns of the objective's second output.
    batches : iterable of Sample
        image (B, 4, D, H, W) float32, present (B, 4), genotype (B, 3) and mask (B, D, H, W) with -1 for
        unknown.
    scaler : GradScaler, optional
        Kept from epoch to epoch with float16; by default one that starts anew.
    accumulate : int
        Batches whose gradients make one step; the step is that of one batch of all their cases.
    penalty : callable, optional
        A term added to every step's loss, as FedProx does.
    share : Share, optional
        The part of each batch that is trained here; sums then are of this part.

    Raises
    ------
    FedGliomaError
        The loss is no longer a finite number.
    """
    run = _Epoch(
        objective,
        tuple(tasks),
        optimizer,
        precision,
        scaler or precision.scaler(),
        channels_last,
        penalty,
        share or Share(),
        summary or FitSummary(),
    )
    objective.train()
    pending: list[Sample] = []
    waiting_since = time.perf_counter()
    for batch in batches:
        started = time.perf_counter()
        run.summary.load_s += started - waiting_since
        pending.append(batch)
        if len(pending) == accumulate:
            run.step(pending)
            pending = []
        waiting_since = time.perf_counter()
        run.summary.train_s += waiting_since - started
    if pending:
        run.step(pending)
    run.look()
    run.summary.train_s += time.perf_counter() - waiting_since
    return run.summary


class _Losses(NamedTuple):
    """What cases gave, still on the device: what was minimised, the sum over cases, sums per task."""

    cases: int
    objective: Tensor
    value: Tensor
    by_task: Tensor


@dataclass
class _Epoch:
    """What a step needs, and sums that are read from the device only now and then."""

    objective: nn.Module
    tasks: tuple[Task, ...]
    optimizer: torch.optim.Optimizer
    precision: Precision
    scaler: torch.amp.GradScaler
    channels_last: bool
    penalty: Callable[[], Tensor] | None
    share: Share
    summary: FitSummary
    unread: list[_Losses] = field(default_factory=list)

    def step(self, batches: Sequence[Sample]) -> None:
        """Move the weights once, by the gradients of the batches taken together.

        Where scaled gradients overflow, again with a smaller scale: a round may have few steps to lose.
        """
        losses = self._moved(batches)
        while losses is None:
            losses = self._moved(batches)
        self.unread += losses
        self.summary.steps += 1
        self.summary.cases += sum(part.cases for part in losses)
        if len(self.unread) >= (1 if self.precision.device.type == "cpu" else LOOK_EVERY):
            self.look()

    def _moved(self, batches: Sequence[Sample]) -> list[_Losses] | None:
        """Return the losses once the weights moved, None where scaled gradients overflowed."""
        self.optimizer.zero_grad(set_to_none=True)
        last, total = len(batches) - 1, sum(len(batch.genotype) for batch in batches)
        losses = [
            # Taken just before it is used: a share may remember which batch it is of.
            self._backward(self.share.of(batch), total, self.penalty if number == last else None)
            for number, batch in enumerate(batches)
        ]
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:
            return losses
        self._require_finite(losses)
        if scale < LEAST_SCALE:
            raise Diverged(
                f"training diverged: gradients too large for float16 in step {self.summary.steps + 1}; lower "
                "the learning rate, or choose precision float32"
            )
        return None

    def _backward(self, batch: Sample, total: int, penalty: Callable[[], Tensor] | None) -> _Losses:
        device = self.precision.device
        image, present, genotype = (
            tensor.to(device, non_blocking=True) for tensor in (batch.image, batch.present, batch.genotype)
        )
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last_3d)
        mask = None if batch.mask is None else batch.mask.to(device, non_blocking=True)
        with self.precision.autocast():
            per_sample, per_task = self.objective(image, present, genotype, mask)
        value = per_sample.sum()
        objective = value * self.share.world / max(total, 1)
        if penalty is not None:
            objective = objective + penalty()
        self.scaler.scale(objective).backward()
        known = known_targets(self.tasks, genotype, mask)
        by_task = torch.stack((per_task.sum(0), known.sum(0)))
        return _Losses(len(genotype), objective.detach(), value.detach(), by_task)

    def _require_finite(self, losses: Sequence[_Losses]) -> None:
        for _, objective, _, _ in losses:
            if not torch.isfinite(objective):
                raise Diverged(
                    f"training diverged: the loss became {float(objective)} at or before step "
                    f"{self.summary.steps}; lower the learning rate"
                )

    def look(self) -> None:
        """Take the losses of the last steps from the device, and stop where one is not finite."""
        self._require_finite(self.unread)
        for _, _, value, sums in self.unread:
            self.summary.loss_sum += float(value)
            losses, known = sums.tolist()
            for column, task in enumerate(self.tasks):
                self.summary.task_sums[task] = self.summary.task_sums.get(task, 0.0) + losses[column]
                self.summary.task_cases[task] = self.summary.task_cases.get(task, 0) + round(known[column])
        self.unread.clear()


def known_targets(tasks: Sequence[Task], genotype: Tensor, mask: Tensor | None) -> Tensor:
    """Return which cases have a target for which task, float32, shape (B, tasks)."""
    targets = Targets(genotype, mask)
    return torch.stack([targets.known(task).float() for task in tasks], dim=1)
