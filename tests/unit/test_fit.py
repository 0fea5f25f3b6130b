"""The training loop against plain ones: accumulated steps, sums, groups of parameters, divergence."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedglioma.case import GENES, UNKNOWN, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import Sample
from fedglioma.errors import FedGliomaError
from fedglioma.losses.tasks import Targets
from fedglioma.training import fit
from fedglioma.training.fit import FitSummary, Share, fit_epoch, parameter_groups, set_learning_rate
from fedglioma.training.learner import EQUAL_COUNTS, Learner, Objective, build_learner
from fedglioma.training.precision import Precision

CPU = Precision(torch.device("cpu"))
CROPS = {"mdpnet": 16, "sgpnet": 32}
LABELS = torch.tensor([[1, 0, UNKNOWN], [0, UNKNOWN, 1], [UNKNOWN, UNKNOWN, UNKNOWN], [1, 1, 0], [0, 0, 0]])
OUTLINED = (True, False, True, True, False)


def settings_of(model: str, **changed: Any) -> RunConfig:
    return RunConfig.model_validate({"model": model, "width": 1, "crop": CROPS[model], **changed})


def learner_of(settings: RunConfig) -> Learner:
    """Return the same network every time, in double precision and without dropout."""
    torch.manual_seed(0)
    learner = build_learner(settings, EQUAL_COUNTS)
    for module in learner.model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout3d):
            module.p = 0.0
    learner.model.double()
    learner.loss.double()
    return learner


def five_cases(settings: RunConfig) -> Sample:
    generator = torch.Generator().manual_seed(1)
    edge = settings.crop
    image = torch.randn(5, 4, edge, edge, edge, generator=generator, dtype=torch.float64)
    mask = None
    if Task.SEGMENTATION in settings.tasks:
        mask = (torch.rand(5, edge, edge, edge, generator=generator) < 0.3).to(torch.int8)
        mask[~torch.tensor(OUTLINED)] = UNKNOWN
    return Sample(image, torch.ones(5, 4), LABELS, mask)


def parts(whole: Sample, sizes: Sequence[int]) -> list[Sample]:
    found, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        mask = None if whole.mask is None else whole.mask[rows]
        found.append(Sample(whole.image[rows], whole.present[rows], whole.genotype[rows], mask))
        start += size
    return found


def optimizer_of(learner: Learner, lr: float = 1e-2) -> torch.optim.Optimizer:
    # Not Adam: a bias before a norm has a gradient of rounding errors, and Adam makes full steps of them.
    return torch.optim.SGD(parameter_groups(learner.model, learner.loss, 1e-2), lr=lr, momentum=0.9)


def state_of(learner: Learner) -> list[Tensor]:
    return [p.detach().clone() for p in (*learner.model.parameters(), *learner.loss.parameters())]


def pull_of(learner: Learner) -> Callable[[], Tensor]:
    """Return 0.05 times the squared distance from the weights as they are now, written out."""
    weights = [*learner.model.parameters(), *learner.loss.parameters()]
    start = [weight.detach().clone() for weight in weights]

    def pull() -> Tensor:
        return 0.05 * sum(((w - s) ** 2).sum() for w, s in zip(weights, start, strict=True))

    return pull


@pytest.mark.parametrize(
    ("model", "sizes", "accumulate", "steps", "pulled"),
    [
        ("mdpnet", (2, 2, 1), 2, (4, 1), False),  # the last group is a single case
        ("mdpnet", (2, 2, 1), 3, (5,), True),
        ("mdpnet", (1, 3, 1), 2, (4, 1), True),  # the cases count alike, not the batches
        ("sgpnet", (2, 1, 2), 3, (5,), True),
    ],
)
def test_accumulated_batches_are_one_step_of_all_their_cases(
    model: str, sizes: tuple[int, ...], accumulate: int, steps: tuple[int, ...], pulled: bool
) -> None:
    settings = settings_of(model)
    whole = five_cases(settings)

    expected = learner_of(settings)
    optimizer, pull = optimizer_of(expected), pull_of(expected)
    for _ in range(2):
        for batch in parts(whole, steps):
            optimizer.zero_grad()
            outputs = expected.model(batch.image, batch.present)
            loss = expected.loss.per_sample(outputs, Targets(batch.genotype, batch.mask)).mean()
            (loss + pull() if pulled else loss).backward()
            optimizer.step()

    found = learner_of(settings)
    objective, optimizer, pull = Objective(found.model, found.loss), optimizer_of(found), pull_of(found)
    summary = FitSummary()
    for _ in range(2):
        fit_epoch(
            objective,
            found.tasks,
            optimizer,
            parts(whole, sizes),
            precision=CPU,
            accumulate=accumulate,
            penalty=pull if pulled else None,
            summary=summary,
        )
    assert (summary.steps, summary.cases) == (2 * len(steps), 10)
    for ours, plain in zip(state_of(found), state_of(expected), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)


def test_accumulated_sums_do_not_depend_on_the_batches() -> None:
    settings = settings_of("mdpnet")
    whole = five_cases(settings)
    found = []
    for sizes, accumulate in (((5,), 1), ((2, 2, 1), 3), ((1, 1, 1, 1, 1), 5)):
        learner = learner_of(settings)
        found.append(
            fit_epoch(
                Objective(learner.model, learner.loss),
                learner.tasks,
                optimizer_of(learner),
                parts(whole, sizes),
                precision=CPU,
                accumulate=accumulate,
            )
        )
    for other in found[1:]:
        assert (other.steps, other.cases) == (1, 5)
        assert other.loss_sum == pytest.approx(found[0].loss_sum, abs=1e-9)
        assert other.task_cases == found[0].task_cases
        assert other.task_sums == pytest.approx(found[0].task_sums, abs=1e-9)


@pytest.mark.parametrize("model", ["mdpnet", "sgpnet"])
def test_sums_are_of_one_case_at_a_time_and_of_known_targets_only(model: str) -> None:
    settings = settings_of(model)
    whole, learner = five_cases(settings), learner_of(settings)
    known = {Task(gene): (LABELS[:, column] >= 0).tolist() for column, gene in enumerate(GENES)}
    known[Task.SEGMENTATION] = list(OUTLINED)
    total, by_task = 0.0, dict.fromkeys(learner.tasks, 0.0)
    learner.model.train()
    with torch.no_grad():
        for place, case in enumerate(parts(whole, (1,) * 5)):
            outputs, targets = learner.model(case.image, case.present), Targets(case.genotype, case.mask)
            total += float(learner.loss.per_sample(outputs, targets))
            for column, task in enumerate(learner.tasks):
                if known[task][place]:
                    by_task[task] += float(learner.loss.per_task(outputs, targets)[0, column])
    summary = fit_epoch(
        Objective(learner.model, learner.loss),
        learner.tasks,
        optimizer_of(learner, lr=1e-12),
        parts(whole, (2, 2, 1)),
        precision=CPU,
    )
    assert summary.loss == pytest.approx(total / 5, rel=1e-7)
    counts = {task: sum(known[task]) for task in learner.tasks}
    assert summary.task_cases == counts
    assert summary.loss_by_task() == pytest.approx(
        {task: by_task[task] / counts[task] for task in learner.tasks}, rel=1e-7
    )


def test_task_without_a_known_target_has_no_loss() -> None:
    settings = settings_of("sgpnet")
    whole, learner = five_cases(settings), learner_of(settings)
    nobody = Sample(whole.image[:2], whole.present[:2], whole.genotype[:2], None)
    summary = fit_epoch(
        Objective(learner.model, learner.loss), learner.tasks, optimizer_of(learner), [nobody], precision=CPU
    )
    assert summary.task_cases == {Task.IDH: 2, Task.SEGMENTATION: 0}
    assert summary.loss_by_task()[Task.SEGMENTATION] is None


def test_epoch_without_cases_has_no_loss() -> None:
    learner = learner_of(settings_of("mdpnet"))
    summary = fit_epoch(
        Objective(learner.model, learner.loss), learner.tasks, optimizer_of(learner), [], precision=CPU
    )
    assert (summary.steps, summary.loss, summary.loss_by_task()) == (0, None, {})


class Slope(nn.Module):
    """A loss of weight times the case's first voxel, whose gradient is that voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: Tensor, _present: Tensor, genotype: Tensor, _mask: Tensor | None) -> Any:
        value = self.weight * image.flatten(1)[:, 0]
        return value, value.detach()[:, None]


def voxels(*values: float) -> list[Sample]:
    return [
        Sample(torch.full((1, 1), value), torch.ones(1, 4), torch.zeros(1, 3, dtype=torch.int64))
        for value in values
    ]


class Late(str):
    """The processor under another name, so that the loop takes it for a device that works ahead."""

    type = "late"


def late() -> Precision:
    return Precision(Late("cpu"))  # type: ignore[arg-type]


def slope_epoch(values: Sequence[float], precision: Precision = CPU, **options: Any) -> FitSummary:
    model = Slope()
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.0))
    return fit_epoch(model, [Task.IDH], optimizer, voxels(*values), precision=precision, **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_loss_that_is_no_number_ends_training_at_its_step(bad: float) -> None:
    with pytest.raises(FedGliomaError, match=rf"diverged: the loss became {bad} at or before step 2; lower"):
        slope_epoch([1.0, bad, 1.0])


def test_training_that_runs_away_is_told() -> None:
    with pytest.raises(FedGliomaError, match="lower the learning rate"):
        slope_epoch([1e30] * 5, lr=1e10)


@pytest.mark.parametrize(("place", "told"), [(0, 3), (2, 3), (3, 6), (6, 7)])
def test_device_that_works_ahead_is_looked_at_now_and_then_and_at_the_end(
    place: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "LOOK_EVERY", 3)
    values = [1.0] * 7
    values[place] = math.nan
    with pytest.raises(FedGliomaError, match=f"at or before step {told};"):
        slope_epoch(values, late())


def test_late_looks_lose_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "LOOK_EVERY", 3)
    for accumulate in (1, 2):
        summary = slope_epoch([1.0, 2.0, 4.0, 8.0, 16.0], late(), accumulate=accumulate)
        assert (summary.loss_sum, summary.cases) == (31.0, 5)
        assert summary.task_sums == {Task.IDH: 31.0}


def test_scaled_gradients_move_the_weights_as_plain_ones_do() -> None:
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu")):
        model = Slope()
        fit_epoch(
            model,
            [Task.IDH],
            torch.optim.SGD(model.parameters(), lr=0.125),
            voxels(1.0, 2.0, 3.0),
            precision=CPU,
            scaler=scaler,
            accumulate=2,
        )
        found.append(model.weight.item())
    assert found == [1 - 0.125 * (1.5 + 3.0)] * 2


def test_step_whose_scaled_gradient_overflows_is_taken_again_and_its_scale_kept() -> None:
    model = Slope()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-30)
    summary = FitSummary()
    for value in (2.0**30, 1.0):  # 2^30 overflows with scales of 2^100, 2^99 and 2^98
        fit_epoch(model, [Task.IDH], optimizer, voxels(value), precision=CPU, scaler=scaler, summary=summary)
    assert model.weight.item() == -(2.0**-30)
    assert scaler.get_scale() == 2.0**97
    assert (summary.steps, summary.cases, summary.loss_sum) == (2, 2, 2.0**30)


def test_gradient_that_no_scale_makes_finite_ends_training() -> None:
    class Cliff(Slope):
        def forward(self, image: Tensor, *others: Any) -> Any:
            value = (self.weight - 1).abs().sqrt() * image.flatten(1)[:, 0]  # slope 1 / 0 at 1
            return value, value.detach()[:, None]

    model = Cliff()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(FedGliomaError, match="diverged: gradients too large for float16 in step 1; lower"):
        fit_epoch(
            model, [Task.IDH], optimizer, voxels(1.0), precision=CPU, scaler=torch.amp.GradScaler("cpu")
        )


def test_loss_that_is_no_number_is_told_with_scaled_gradients_too() -> None:
    with pytest.raises(FedGliomaError, match="the loss became nan"):
        slope_epoch([1.0, math.nan], scaler=torch.amp.GradScaler("cpu"))


def test_heads_have_their_own_rate_and_only_kernels_decay() -> None:
    learner = build_learner(settings_of("sgpnet"), EQUAL_COUNTS)
    groups = parameter_groups(learner.model, learner.loss, 0.25, head_lr=0.5)
    optimizer = torch.optim.Adam(groups, lr=1.0)
    set_learning_rate(optimizer, 0.02)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(found)
    for name, parameter in learner.model.named_parameters():
        lr = 0.01 if name.startswith("heads.idh.") else 0.02
        assert found.pop(id(parameter)) == (lr, 0.25 if parameter.ndim > 1 else 0.0), name
    assert not found


def test_frozen_parameters_are_in_no_group() -> None:
    learner = build_learner(settings_of("sgpnet", targets="idh"), EQUAL_COUNTS)
    groups = parameter_groups(learner.model, learner.loss, 0.0, head_lr=0.5)
    grouped = {id(parameter) for group in groups for parameter in group["params"]}  # type: ignore[attr-defined]
    left_out = {name for name, p in learner.model.named_parameters() if id(p) not in grouped}
    assert left_out == {n for n, _ in learner.model.named_parameters() if n.startswith("heads.segmentation.")}


def test_norms_positions_and_loss_weights_do_not_decay() -> None:
    learner = build_learner(settings_of("mdpnet"), EQUAL_COUNTS)
    groups = parameter_groups(learner.model, learner.loss, 0.25)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    free = {name for name, p in learner.model.named_parameters() if decay[id(p)] == 0.0}
    assert {name for name, p in learner.model.named_parameters() if p.ndim < 2} <= free
    assert any("pos" in name for name in free)
    assert all(decay[id(parameter)] == 0.0 for parameter in learner.loss.parameters())
    assert {group["scale"] for group in groups} == {1.0}


def test_transposed_convolutions_decay_too() -> None:
    model = nn.Sequential(nn.ConvTranspose3d(2, 3, 2), nn.GroupNorm(1, 3), nn.Conv3d(3, 2, 1))
    groups = parameter_groups(model, nn.Module(), 0.25)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}  # type: ignore[attr-defined]
    found = {name for name, p in model.named_parameters() if decay[id(p)]}
    assert found == {"0.weight", "2.weight"}


@pytest.mark.parametrize(
    ("schedule", "form"),
    [
        ("cosine", lambda done: (1 + math.cos(math.pi * done)) / 2),
        ("poly", lambda done: (1 - done) ** 0.9),
        ("const", lambda _done: 1.0),
    ],
)
def test_learning_rate_follows_its_schedule_over_all_epochs_of_the_run(
    schedule: str, form: Callable[[float], float]
) -> None:
    settings = RunConfig.model_validate({"schedule": schedule, "rounds": 5, "local_epochs": 3, "lr": 2e-3})
    rates = [settings.learning_rate(epoch) for epoch in range(15)]
    assert rates == pytest.approx([2e-3 * form(epoch / 15) for epoch in range(15)], rel=1e-12)
    optimizer = SimpleNamespace(param_groups=[{"scale": 0.5}, {"scale": 1.0}, {}])
    set_learning_rate(optimizer, rates[7])  # type: ignore[arg-type]
    assert [g["lr"] / rates[7] for g in optimizer.param_groups] == [0.5, 1.0, 1.0]


def test_share_is_taken_of_a_batch_just_before_it_is_used() -> None:
    order: list[str] = []

    class Told(Share):
        def of(self, batch: Sample) -> Sample:
            order.append("share")
            return super().of(batch)

    class Tells(Slope):
        def forward(self, *batch: Any) -> Any:
            order.append("network")
            return super().forward(*batch)

    model = Tells()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    fit_epoch(model, [Task.IDH], optimizer, voxels(1.0, 2.0), precision=CPU, accumulate=2, share=Told())
    assert order == ["share", "network"] * 2


def test_gradients_of_shares_average_to_that_of_the_batches() -> None:
    batches = [
        Sample(torch.tensor([[1.0], [2.0], [4.0]]), torch.ones(3, 4), torch.zeros(3, 3, dtype=torch.int64)),
        Sample(torch.tensor([[8.0]]), torch.ones(1, 4), torch.zeros(1, 3, dtype=torch.int64)),
    ]
    moved, cases = [], 0
    for rank in range(2):
        model = Slope()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        share = Share(rank, 2)
        summary = fit_epoch(model, [Task.IDH], optimizer, batches, precision=CPU, accumulate=2, share=share)
        moved.append(1 - model.weight.item())
        cases += summary.cases
    assert sum(moved) / 2 == (1 + 2 + 4 + 8) / 4
    assert cases == 4
