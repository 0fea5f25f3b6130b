"""Short numbers inside the network: what is chosen where, and what stays float32 whatever it is."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedglioma.case import GENES, UNKNOWN, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import Sample
from fedglioma.errors import ConfigError
from fedglioma.losses.multitask import GenotypeLoss
from fedglioma.losses.segmentation import SegmentationLoss, SGPLoss
from fedglioma.losses.tasks import Targets, TaskLoss
from fedglioma.training import precision
from fedglioma.training.fit import FitSummary, fit_epoch, parameter_groups
from fedglioma.training.learner import EQUAL_COUNTS, Objective, build_learner
from fedglioma.training.precision import Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SHORT = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NETWORKS: dict[str, dict[str, Any]] = {
    "mdpnet": {"width": 2, "crop": 16, "lr": 3e-4},
    "sgpnet": {"width": 1, "crop": 32, "lr": 1e-2},
}
OUTPUTS = {gene.value: (2, 2) for gene in GENES} | {Task.SEGMENTATION.value: (2, 2, 2, 2, 2)}


def two_cases(crop: int) -> Sample:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 4, crop, crop, crop, generator=generator)
    mask = torch.zeros(2, crop, crop, crop, dtype=torch.int8)
    mask[:, 4:12, 4:12, 4:12] = 1
    image[:, :, 4:12, 4:12, 4:12] += 2
    image[1] += 0.5
    return Sample(image, torch.ones(2, 4), torch.tensor([[0, 1, 0], [1, 0, UNKNOWN]]), mask)


@pytest.fixture
def right_gradients() -> Iterator[None]:
    """Leave oneDNN out, whose gradients of small layers in bfloat16 are wrong (see ``precision.py``)."""
    with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[no-untyped-call]
        yield


def curve(model: str, dtype: torch.dtype, steps: int = 10) -> list[float]:
    """Return the training loss of each of the first steps."""
    settings = RunConfig.model_validate({"model": model, "weighting": "fixed", **NETWORKS[model]})
    torch.manual_seed(0)
    learner = build_learner(settings, EQUAL_COUNTS)
    for module in learner.model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout3d):
            module.p = 0.0
    chosen = Precision(CPU, dtype)
    objective, scaler = Objective(learner.model, learner.loss), chosen.scaler()
    optimizer = torch.optim.Adam(parameter_groups(learner.model, learner.loss, 0.0), lr=settings.lr)
    found: list[FitSummary] = [
        fit_epoch(
            objective,
            learner.tasks,
            optimizer,
            [two_cases(settings.crop)],
            precision=chosen,
            scaler=scaler,
        )
        for _ in range(steps)
    ]
    assert all(parameter.dtype is torch.float32 for parameter in objective.parameters())
    return [summary.loss or math.nan for summary in found]


@pytest.mark.parametrize("name", ["auto", "float32"])
def test_processor_computes_in_float32(name: Any) -> None:
    assert Precision.of(name, CPU) == Precision(CPU, torch.float32)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_processor_refuses_short_numbers_in_words(name: Any) -> None:
    said = rf"^precision: {name}: a processor's short numbers give wrong gradients; choose auto or float32"
    with pytest.raises(ConfigError, match=said):
        Precision.of(name, CPU)


@pytest.mark.parametrize(("has", "chosen"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpu_computes_in_bfloat16_where_it_has_it(
    has: bool, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_has_bfloat16", lambda _device: has)
    assert Precision.of("auto", GPU).dtype is chosen
    assert Precision.of("float16", GPU).dtype is torch.float16
    assert Precision.of("float32", GPU).dtype is torch.float32


def test_gpu_without_bfloat16_refuses_it_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_has_bfloat16", lambda _device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    with pytest.raises(
        ConfigError, match=r"^precision: bfloat16: Tesla T4 has none; choose auto or float16$"
    ):
        Precision.of("bfloat16", GPU)


def test_only_float16_scales_its_gradients() -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    assert [Precision(CPU, dtype).scaler().is_enabled() for dtype in dtypes] == [False, False, True]


def test_only_short_numbers_run_the_network_under_autocast() -> None:
    x = torch.ones(2, 2)
    for dtype in (torch.float32, *SHORT.values()):
        with Precision(CPU, dtype).autocast():
            assert (x @ x).dtype is dtype
        assert (x @ x).dtype is torch.float32


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.usefixtures("right_gradients")
@pytest.mark.parametrize(
    ("model", "name", "steps", "apart"),
    [("mdpnet", "bfloat16", 10, 0.05), ("mdpnet", "float16", 10, 0.02), ("sgpnet", "bfloat16", 4, 0.008)],
)
def test_loss_falls_in_short_numbers_as_it_does_in_float32(
    model: str, name: str, steps: int, apart: float
) -> None:
    plain, short = curve(model, torch.float32, steps), curve(model, SHORT[name], steps)
    assert short != plain
    assert plain[-1] < (1 - 2 * apart) * plain[0]
    assert short == pytest.approx(plain, rel=apart)


class Says(nn.Module):
    """A network whose answers are given, in short numbers."""

    def __init__(self, outputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, _image: Tensor, _present: Tensor) -> dict[str, Tensor]:
        return self.outputs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [lambda: GenotypeLoss(EQUAL_COUNTS), SGPLoss, SegmentationLoss])
def test_loss_is_that_of_the_logits_in_float32(make: Callable[[], TaskLoss], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    outputs = {
        name: (6 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in OUTPUTS.items()
    }
    genotype = torch.tensor([[0, 1, 0], [1, 0, 1]])
    mask = torch.randint(0, 2, (2, 2, 2, 2), generator=generator).to(torch.int8)
    loss = make()
    exact = make().double()
    with torch.autocast("cpu", dtype=dtype):
        value, by_task = Objective(Says(outputs), loss)(torch.ones(1), torch.ones(1), genotype, mask)
    wide = {name: output.double() for name, output in outputs.items()}
    targets = Targets(genotype, mask)
    assert value.dtype is by_task.dtype is torch.float32
    torch.testing.assert_close(value.double(), exact.per_sample(wide, targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_task.double(), exact.per_task(wide, targets), rtol=1e-5, atol=1e-6)


def test_sure_case_keeps_its_loss_in_short_numbers() -> None:
    logits = torch.tensor([[10.0, 0.0]], dtype=torch.bfloat16)
    outputs = {"idh": logits, "segmentation": torch.zeros(1, 2, 1, 1, 1, dtype=torch.bfloat16)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = SGPLoss("idh").per_sample(outputs, Targets(torch.tensor([[0, 0, 0]])))
    assert float(found) == pytest.approx(math.log1p(math.exp(-10)), rel=1e-2)
