"""The benchmark of private steps: its three ways run on small networks, and its ratios are right."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PLACE = Path(__file__).resolve().parents[2] / "benchmarks" / "dp_cost.py"


@pytest.fixture
def dp_cost(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("dp_cost", PLACE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dp_cost", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("way", ["plain", "private", "hooks"])
@pytest.mark.parametrize(("model", "crop"), [("mdpnet", 16), ("sgpnet", 32)])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_each_way_takes_steps(dp_cost: ModuleType, way: str, model: str, crop: int) -> None:
    steps = dp_cost.stepper(way, dp_cost.settings_of(model, crop, 2, 1))
    noise = [next(steps) for _ in range(2)]
    assert all(seconds >= 0 for seconds in noise)
    assert way == "private" or noise == [0.0, 0.0]


def test_ratios_are_of_the_private_way(dp_cost: ModuleType) -> None:
    costs = {
        "plain": dp_cost.Cost(2.0, 2.0, 100.0, 0.0),
        "private": dp_cost.Cost(3.0, 3.0, 50.0, 0.1),
        "hooks": dp_cost.Cost(6.0, 6.0, 200.0, 0.0),
    }
    assert dp_cost.ratios(costs) == {
        "time over plain": 1.5,
        "memory over plain": 0.5,
        "time over hooks": 0.5,
        "memory over hooks": 0.25,
    }
