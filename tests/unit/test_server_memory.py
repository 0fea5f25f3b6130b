"""What the server holds does not grow with the number of sites."""

import gc
import json
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from fedglioma.config.run import RunConfig
from fedglioma.weights import GROUPS, FlatArrays, Layout, to_record
from fedglioma_server.strategy import RoundStrategy
from tests import round_fixture
from tests.round_fixture import answer, asked, site, strategy_of

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = 2_000_000
LAYOUT = Layout((("model.stem.weight", (NUMBERS,)), *round_fixture.LAYOUT.shapes[1:]))
PAYLOAD = 4 * NUMBERS


def start() -> FlatArrays:
    return {group: np.zeros(size, np.float32) for group, size in LAYOUT.sizes.items()}


def replies(strategy: RoundStrategy, messages: list[Message]) -> Iterator[Message]:
    """Yield one reply after the other, as an engine does; none is kept here."""
    for number, message in enumerate(messages):
        local = {
            group: np.full(size, 1e-3 * (number + 1), np.float32) for group, size in LAYOUT.sizes.items()
        }
        yield answer(strategy, message, local)


def one_round(folder: Path, sites: int, name: str, payload: str = "float32") -> None:
    settings = RunConfig(strategy=name, payload=payload)
    strategy = strategy_of(folder, [site(f"site-{n:02d}") for n in range(sites)], settings)
    strategy.layout = LAYOUT
    found, _ = strategy.aggregate_train(1, replies(strategy, asked(strategy, start())))
    assert found is not None
    assert {line.status for line in strategy.ledger.sites.values()} == {"ok"}


def peak(folder: Path, sites: int, name: str, payload: str) -> int:
    gc.collect()
    tracemalloc.start()
    one_round(folder, sites, name, payload)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("fedavg", "float32"),
        ("fedavg", "int8"),
        ("median", "float32"),
        ("multikrum", "bfloat16"),
        ("fedadam", "float32"),
    ],
)
def test_memory_of_a_round_is_that_of_few_sites(tmp_path: Path, name: str, payload: str) -> None:
    few, many = (peak(tmp_path, sites, name, payload) for sites in (5, 16))
    # Peaks of two runs differ by when the judging thread meets the next reply, not by sites: eleven more
    # sites that were kept would be eleven updates more, the smallest of them a quarter of a payload each.
    assert many < few + 2 * PAYLOAD


def test_resident_memory_of_sixteen_sites_is_that_of_two(tmp_path: Path) -> None:
    found = {}
    for sites in (2, 16):
        done = subprocess.run(  # noqa: S603  this file, in a process of its own
            [sys.executable, __file__, str(tmp_path), str(sites)],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{ROOT}/server:{ROOT}/client", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        found[sites] = json.loads(done.stdout)
    assert found[16] - found[2] < 3 * PAYLOAD  # kept updates would be fourteen


def test_messages_of_all_sites_are_one_payload(tmp_path: Path) -> None:
    for payload in ("float32", "int8"):
        strategy = strategy_of(
            tmp_path, [site(f"site-{n:02d}") for n in range(16)], RunConfig(payload=payload)
        )
        strategy.layout = LAYOUT
        record = to_record(start())
        gc.collect()
        tracemalloc.start()
        messages = asked(strategy, start())
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(messages) == 16
        assert set(record) == set(GROUPS)
        assert grown < 2.5 * PAYLOAD


if __name__ == "__main__":
    one_round(Path(sys.argv[1]), int(sys.argv[2]), "fedavg")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # noqa: T201
