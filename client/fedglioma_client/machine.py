"""Checks of this computer: cache and disk, processor, memory, device, software, telemetry."""

import os
import shutil
import sys
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError
from fedglioma.machine import usable_cores
from fedglioma_client.verdict import Status, Verdict, doubtful, failed, fine, several

CASE_BYTES_AT_1_MM: Final = 60e6
"""Float16, four channels, the box around a brain: 8 bytes times some 3.7 million voxels; on the common
scale once more."""
WORKER_BYTES: Final = 1e9
_GB: Final = 1e9
_PACKAGES: Final = ("fedglioma", "torch", "flwr", "numpy", "nibabel", "SimpleITK")
_MEMINFO: Final = Path("/proc/meminfo")
_CONTAINER: Final = Path("/sys/fs/cgroup")
_CONFIG: Final = ConfigError.exit_code


def bytes_needed(cases: int, spacing_mm: float) -> float:
    """Return about how many bytes the prepared cases take; at half the voxel edge, eight times as many."""
    return cases * CASE_BYTES_AT_1_MM / spacing_mm**3


def check_cache(folder: Path, cases: int, spacing_mm: float) -> Verdict:
    """Return whether the cache can be written and its disk holds what is still to be prepared.

    What lies in the cache already may be this site's or, where sites share it, another's: it counts as
    done for the failure, and as not done for the warning.
    """
    subject = "cache"
    try:
        free = shutil.disk_usage(writable(folder)).free
        there = sum(entry.stat().st_size for entry in folder.glob("*.npy"))
    except OSError as error:
        detail = f"{folder}: cannot be written ({error.strerror or error})"
        return failed(
            subject, detail, "give this user write permission, or set another cache", exit_code=_CONFIG
        )
    needed = bytes_needed(cases, spacing_mm)
    if not cases:
        return fine(subject, f"{folder}: can be written, {_size(free)} free")
    detail = (
        f"{folder}: {several(cases, 'case')} at {spacing_mm:g} mm: about {_size(needed)} in all; "
        f"{_size(there)} are there, {_size(free)} free"
    )
    remedy = "free some space, or set cache to a larger disk"
    if free < needed - there:
        return failed(subject, detail, remedy, exit_code=_CONFIG)
    if free < needed * 1.1:
        return doubtful(subject, detail, f"enough only if most of it is this site's; else {remedy}")
    return fine(subject, detail)


def writable(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there, since a check makes none.

    Raises
    ------
    OSError
        Nothing can be written there.
    """
    place = next((place for place in (folder, *folder.parents) if place.exists()), Path(folder.anchor))
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"0")
    return place


def check_processor(config: SiteConfig) -> Verdict:
    """Return whether workers and threads fit the cores that this process may use."""
    cores = usable_cores()
    threads = config.threads or cores
    together = f" in {config.processes} processes" if config.processes > 1 else ""
    detail = f"{several(cores, 'core')}; {threads} train{together}, {config.workers} prepare"
    wanted = {"threads": threads, "workers": config.workers, "processes": config.processes}
    key = next((key for key, count in wanted.items() if count > cores), None)
    if key is not None:
        return doubtful("processor", detail, f"set {key} to at most {cores}, else they wait for each other")
    return fine("processor", detail)


def check_memory(workers: int, spacing_mm: float) -> Verdict:
    """Return whether the preparing processes fit into the memory that is available."""
    available = available_memory()
    if available is None:
        return fine("memory", "not measured on this system")
    each = WORKER_BYTES * max(1.0, spacing_mm**-3)
    detail = f"{_size(available)} available; workers: {workers} needs about {_size(workers * each)}"
    if available >= workers * each:
        return fine("memory", detail)
    remedy = (
        "close other programs" if workers == 1 else f"set workers to {max(1, int(available // each))} or less"
    )
    return doubtful("memory", detail, remedy)


def available_memory() -> int | None:
    """Return the bytes that programs can still take, None where the system does not tell."""
    told = [size for size in (_system_memory(), _container_memory()) if size is not None]
    return min(told, default=None)


def _system_memory() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def _container_memory() -> int | None:
    """Return what a container's limit leaves, None outside a container or where there is no limit."""
    try:
        limit = (_CONTAINER / "memory.max").read_text(encoding="ascii").strip()
        used = (_CONTAINER / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))


def check_device(name: str, processes: int = 1) -> Verdict:
    """Return whether PyTorch can compute on the device that the settings name, once for each process."""
    subject = "device"
    try:
        import torch
    except (ImportError, OSError) as error:
        detail = f"PyTorch cannot be loaded ({str(error).splitlines()[0]})"
        return failed(subject, detail, "install fedglioma again", exit_code=_CONFIG)
    try:
        device = torch.device(name)
    except RuntimeError:
        return failed(
            subject, f"{name!r} is no device", "set device to cpu, cuda or cuda:1", exit_code=_CONFIG
        )
    if device.type == "cpu":
        return fine(subject, "cpu")
    if device.type != "cuda":
        return failed(
            subject, f"{name} is not supported", "set device to cpu, cuda or cuda:1", exit_code=_CONFIG
        )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    if not there:
        if torch.version.cuda is None:
            why, remedy = "this PyTorch was built without CUDA", "install a PyTorch with CUDA"
        else:
            why = str(told[0].message).splitlines()[0] if told else "no GPU answers"
            remedy = "run nvidia-smi and mend the driver"
        return failed(
            subject, f"{name} asked for, but {why}", f"{remedy}, or set device to cpu", exit_code=_CONFIG
        )
    if processes == 1:
        return _check_gpu(name, device.index or 0)
    return _check_gpus(processes)


def _check_gpus(processes: int) -> Verdict:
    """Return whether there is a GPU for each process: the verdict on the worst of them."""
    import torch

    count = torch.cuda.device_count()
    if count < processes:
        detail = f"processes: {processes} asked for; GPUs: {count}"
        return failed("device", detail, f"set processes to {max(count, 1)} or less", exit_code=_CONFIG)
    verdicts = [_check_gpu(f"cuda:{index}", index) for index in range(processes)]
    worst = next((verdict for verdict in verdicts if verdict.status is Status.FAILED), None)
    worst = worst or next((verdict for verdict in verdicts if verdict.status is not Status.OK), None)
    return worst or fine("device", "; ".join(verdict.detail for verdict in verdicts))


def _check_gpu(name: str, index: int) -> Verdict:
    """Return whether a GPU computes, and how much of its memory is free."""
    import torch

    subject = "device"
    count = torch.cuda.device_count()
    if index >= count:
        detail = f"{name} asked for, but there is {several(count, 'GPU')}, counted from 0"
        return failed(subject, detail, f"set device to cuda:{count - 1} or lower", exit_code=_CONFIG)
    try:
        free, total = torch.cuda.mem_get_info(index)
        (torch.ones(1, device=f"cuda:{index}") + 1).item()
    except RuntimeError as error:
        detail = f"{name} cannot be used ({str(error).splitlines()[0]})"
        remedy = "run nvidia-smi: another program or the driver may be the cause; or set device to cpu"
        return failed(subject, detail, remedy, exit_code=_CONFIG)
    detail = f"{name}: {torch.cuda.get_device_name(index)}, {_size(free)} of {_size(total)} free"
    if free < total / 2:
        return doubtful(subject, detail, "another program holds the rest; nvidia-smi names it")
    return fine(subject, detail)


def check_software() -> Verdict:
    """Return the versions that a support request should name."""
    try:
        found = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    except PackageNotFoundError as error:
        return failed(
            "software", f"{error.name} is not installed", "install fedglioma again", exit_code=_CONFIG
        )
    return fine("software", f"{found}, Python {sys.version.split()[0]}")


def check_telemetry() -> Verdict:
    """Return whether Flower would report its use, or look for updates, over the internet."""
    on = []
    if os.environ.get("FLWR_TELEMETRY_ENABLED", "1") == "1":
        on.append("FLWR_TELEMETRY_ENABLED=0")
    if os.environ.get("FLWR_DISABLE_UPDATE_CHECK") != "1":
        on.append("FLWR_DISABLE_UPDATE_CHECK=1")
    if on:
        remedy = f"set {' and '.join(on)} in the environment, or unset them: off is the default here"
        return failed("telemetry", "Flower would contact its maker", remedy, exit_code=_CONFIG)
    return fine("telemetry", "off: no usage report and no update check")


def _size(size: float) -> str:
    if size < _GB:
        return f"{size / 1e6:.0f} MB"
    return f"{size / _GB:.1f} GB" if size < 10 * _GB else f"{size / _GB:.0f} GB"
