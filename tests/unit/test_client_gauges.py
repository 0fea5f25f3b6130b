"""The site's metrics, scraped over HTTP and read by Prometheus' own parser."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedglioma_client.gauges import ClientGauges, Phase, gpu_bytes
from tests.scrape_fixture import scrape, value

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gauges() -> ClientGauges:
    return ClientGauges("henan")


def test_site_that_just_started_is_not_connected(gauges: ClientGauges) -> None:
    samples = scrape(gauges.registry)
    assert value(samples, "server_connected", site="henan") == 0
    assert math.isnan(value(samples, "server_last_contact_timestamp_seconds", site="henan"))
    assert value(samples, "gpu_memory_bytes", site="henan") == 0
    assert value(samples, "process_resident_memory_bytes") > 1e6


def test_contact_connects_and_its_loss_keeps_the_last_time(gauges: ClientGauges) -> None:
    gauges.contact(1.75e9)
    assert value(scrape(gauges.registry), "server_connected", site="henan") == 1
    gauges.connected(False)
    samples = scrape(gauges.registry)
    assert value(samples, "server_connected", site="henan") == 0
    assert value(samples, "server_last_contact_timestamp_seconds", site="henan") == 1.75e9


def test_round_and_its_bytes_are_those_of_the_last(gauges: ClientGauges) -> None:
    for number in (1, 2):
        gauges.round_started(number)
        gauges.received(100 * number)
        gauges.sent(50 * number)
    samples = scrape(gauges.registry)
    assert value(samples, "round", site="henan") == 2
    assert value(samples, "update_bytes", site="henan", direction="down") == 200
    assert value(samples, "update_bytes", site="henan", direction="up") == 100


@pytest.mark.parametrize("phase", ["wait", "download", "train", "upload"])
def test_phases_are_counted(gauges: ClientGauges, phase: Phase) -> None:
    gauges.phase_finished(phase, 1.5)
    gauges.phase_finished(phase, 2.5)
    samples = scrape(gauges.registry)
    assert value(samples, "round_duration_seconds_sum", site="henan", phase=phase) == 4
    assert value(samples, "round_duration_seconds_count", site="henan", phase=phase) == 2
    assert value(samples, "round_duration_seconds_bucket", site="henan", phase=phase, le="2.5") == 2


def test_installed_version_is_shown(gauges: ClientGauges) -> None:
    shown = [s.labels for s in scrape(gauges.registry) if s.name == "fedglioma_build_info"]
    assert [set(labels) for labels in shown] == [{"version"}]


def test_looking_at_gpu_memory_does_not_load_pytorch() -> None:
    script = (
        "import sys\n"
        "from fedglioma_client.gauges import ClientGauges, gpu_bytes\n"
        "ClientGauges('henan')\n"
        "assert gpu_bytes() == 0\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'flwr' not in sys.modules\n"
    )
    done = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_gpu_memory_is_the_sum_over_all_that_pytorch_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    def torch_with(initialized: bool) -> SimpleNamespace:
        cuda = SimpleNamespace(
            is_initialized=lambda: initialized,
            device_count=lambda: 2,
            memory_reserved=lambda n: 10 ** (n + 6),
        )
        return SimpleNamespace(cuda=cuda)

    monkeypatch.setitem(sys.modules, "torch", torch_with(True))
    assert gpu_bytes() == 11e6
    monkeypatch.setitem(sys.modules, "torch", torch_with(False))
    assert gpu_bytes() == 0


@pytest.mark.gpu
def test_gpu_memory_is_what_pytorch_holds() -> None:
    torch = pytest.importorskip("torch")
    held = torch.zeros(2**20, device="cuda")
    assert gpu_bytes() == torch.cuda.memory_reserved() >= held.numel() * 4
