import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from fedglioma.config.site import SiteConfig
from fedglioma_client import machine
from fedglioma_client.machine import (
    check_cache,
    check_device,
    check_memory,
    check_processor,
    check_software,
    check_telemetry,
)
from fedglioma_client.verdict import Status

GB = 10**9


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A disk whose free bytes a test decides."""
    state = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, state.free))
    return state


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One GPU of 16 GB, as far as PyTorch tells."""
    state = SimpleNamespace(count=1, free=15 * GB, total=16 * GB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: state.count)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (state.free, state.total))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch, "ones", lambda n, device: torch.zeros(n))
    return state


@pytest.mark.parametrize(
    ("free", "status"), [(5.9, Status.FAILED), (6.1, Status.WARNING), (6.8, Status.OK)], ids=str
)
def test_a_hundred_cases_at_1_mm_need_six_gigabytes(
    disk: SimpleNamespace, tmp_path: Path, free: float, status: Status
) -> None:
    disk.free = int(free * GB)
    verdict = check_cache(tmp_path / "new" / "cache", 100, 1.0)
    assert verdict.status is status
    assert "6.0 GB" in verdict.detail
    assert verdict.exit_code == (2 if status is Status.FAILED else 0)
    assert list(tmp_path.iterdir()) == []


def test_half_the_voxel_edge_needs_eight_times_the_disk(disk: SimpleNamespace, tmp_path: Path) -> None:
    disk.free = 47 * GB
    assert check_cache(tmp_path, 100, 0.5).status is Status.FAILED
    assert check_cache(tmp_path, 100, 2.0).status is Status.OK


def test_what_the_cache_holds_turns_a_failure_into_a_warning(disk: SimpleNamespace, tmp_path: Path) -> None:
    disk.free = 10**6
    (tmp_path / "a.npy").write_bytes(bytes(120 * 10**6))
    assert check_cache(tmp_path, 2, 1.0).status is Status.WARNING
    assert check_cache(tmp_path, 3, 1.0).status is Status.FAILED


def test_a_cache_that_is_a_file_fails_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder", encoding="utf-8")
    for folder in (tmp_path / "cache", tmp_path / "cache" / "inside"):
        verdict = check_cache(folder, 1, 1.0)
        assert verdict.status is Status.FAILED
        assert "set another cache" in verdict.remedy


def test_more_threads_than_cores_are_warned_about(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    config = SiteConfig(site="north", data=tmp_path)
    assert check_processor(config).status is Status.OK
    assert "set workers to at most 4" in check_processor(config.model_copy(update={"workers": 5})).remedy
    assert "set threads to at most 4" in check_processor(config.model_copy(update={"threads": 8})).remedy
    assert "set processes to at most 4" in check_processor(config.model_copy(update={"processes": 5})).remedy


def test_workers_that_do_not_fit_into_memory_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 3 * GB)
    assert check_memory(3, 1.0).status is Status.OK
    assert "set workers to 3" in check_memory(4, 1.0).remedy
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    assert check_memory(64, 1.0).status is Status.OK


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CONTAINER", tmp_path)
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n", encoding="ascii")
    assert machine.available_memory() == 8_192_000
    (tmp_path / "memory.max").write_text("5000\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("2000\n", encoding="ascii")
    assert machine.available_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    assert machine.available_memory() == 8_192_000


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta"])
def test_a_device_that_is_none_fails(name: str) -> None:
    verdict = check_device(name)
    assert (verdict.status, verdict.exit_code) == (Status.FAILED, 2)
    assert "cpu, cuda or cuda:1" in verdict.remedy


def test_cuda_without_a_gpu_fails_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    verdict = check_device("cuda")
    assert (verdict.status, verdict.exit_code) == (Status.FAILED, 2)
    assert verdict.remedy.endswith("or set device to cpu")


def test_a_gpu_that_computes_is_fine(gpu: SimpleNamespace) -> None:
    verdict = check_device("cuda")
    assert verdict.status is Status.OK
    assert verdict.detail == "cuda: Some GPU, 15 GB of 16 GB free"


def test_a_gpu_that_others_use_is_warned_about(gpu: SimpleNamespace) -> None:
    gpu.free = 3 * GB
    assert check_device("cuda:0").status is Status.WARNING


def test_a_gpu_that_is_not_there_fails(gpu: SimpleNamespace) -> None:
    assert "set device to cuda:0 or lower" in check_device("cuda:1").remedy


def test_each_process_needs_a_gpu_of_its_own(gpu: SimpleNamespace) -> None:
    gpu.count = 2
    verdict = check_device("cuda", 3)
    assert (verdict.status, verdict.exit_code) == (Status.FAILED, 2)
    assert verdict.detail == "processes: 3 asked for; GPUs: 2"
    assert verdict.remedy == "set processes to 2 or less"


def test_every_gpu_that_is_used_is_looked_at(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.count = 3
    assert check_device("cuda", 2).detail.count("15 GB of 16 GB free") == 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (GB if index else 15 * GB, 16 * GB))
    verdict = check_device("cuda", 2)
    assert verdict.status is Status.WARNING
    assert verdict.detail.startswith("cuda:1: ")


def test_a_gpu_that_does_not_compute_fails(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(n: int, device: str) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available\nfor this device")

    monkeypatch.setattr(torch, "ones", broken)
    verdict = check_device("cuda")
    assert verdict.status is Status.FAILED
    assert "no kernel image" in verdict.detail
    assert "\n" not in verdict.detail


def test_software_names_the_versions_of_a_support_request() -> None:
    assert f"torch {torch.__version__}" in check_software().detail


@pytest.mark.parametrize(
    ("telemetry", "update", "status"),
    [
        ("0", "1", Status.OK),
        ("1", "1", Status.FAILED),
        (None, "1", Status.FAILED),
        ("0", None, Status.FAILED),
    ],
)
def test_telemetry_that_is_on_fails(
    monkeypatch: pytest.MonkeyPatch, telemetry: str | None, update: str | None, status: Status
) -> None:
    for name, value in (("FLWR_TELEMETRY_ENABLED", telemetry), ("FLWR_DISABLE_UPDATE_CHECK", update)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert check_telemetry().status is status
