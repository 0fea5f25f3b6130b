"""A disk that is full ends a run in words, with nothing half written, and the run continues."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fedglioma_server.records import RunRecord, read_json, read_rounds
from tests.cli_fixture import TINY, call, reason_of

DISK_FULL = os.strerror(errno.ENOSPC)
FILE_TOO_LARGE = os.strerror(errno.EFBIG)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """Let the flush of every file whose name holds ``name`` find the disk full."""
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if name in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, DISK_FULL)
        flush(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        yield


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells files by /proc")
@pytest.mark.parametrize(
    "name", ["/cache/", "run.json", "plan.json", "round-0001", "rounds.jsonl", "config.json"]
)
@pytest.mark.usefixtures("quick")
def test_full_disk_ends_the_run_in_words_with_nothing_half_written_and_it_continues(
    name: str, cohorts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    cache = tmp_path / "cache" if name == "/cache/" else cohorts / "cache"
    words = ("simulate", "--sites", cohorts / "site_config", "--cache", cache, "--out", tmp_path / "run")
    with full_disk(monkeypatch, name):
        result = call(*words, *TINY)
    assert result.exit_code == 1
    assert reason_of(result) == f"{DISK_FULL}: check space and permissions, then run again"
    assert_nothing_half_written(tmp_path)
    assert call(*words, *TINY).exit_code == 0
    assert weights_in(tmp_path / "run") == weights_in(finished), "it ended elsewhere"


@pytest.mark.usefixtures("quick")
def test_file_that_cannot_grow_leaves_no_half_of_it(cohorts: Path, tmp_path: Path, finished: Path) -> None:
    words = (
        "simulate",
        "--sites",
        cohorts / "site_config",
        "--cache",
        cohorts / "cache",
        "--out",
        tmp_path / "run",
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        result = call(*words, *TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 1
    assert FILE_TOO_LARGE in reason_of(result)
    assert_nothing_half_written(tmp_path)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert read_json(tmp_path / "run" / "run.json", RunRecord).status == "failed"
    assert call(*words, *TINY).exit_code == 0
    assert weights_in(tmp_path / "run") == weights_in(finished), "it ended elsewhere"


def assert_nothing_half_written(folder: Path) -> None:
    assert not list(folder.rglob(".*.part"))
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    read_rounds(folder / "run" / "rounds.jsonl")


def weights_in(run: Path) -> dict[str, bytes]:
    tensors = load_file(run / "checkpoints" / "round-0001.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}
