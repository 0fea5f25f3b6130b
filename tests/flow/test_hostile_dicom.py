"""Every kind of hostile DICOM, bombs of NIfTI and full disks, as the hospital's own command meets them.

What was wrong is told with its reason, the other patients are prepared, nothing is written anywhere but into
cache and state, and the command ends in time, without a traceback.
"""

import errno
import json
import os
import resource
import shutil
import stat
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedglioma.data import dicom_volume
from fedglioma_client import cli
from fedglioma_client.remedies import REMEDIES
from tests.bad_cohorts import write_cohort
from tests.hostile_dicom import BAD, BOMBS, EVIL, HOSTILE, Hostile, write_hospital

LONGEST_S = 120.0
"""Far more than any of them takes on a quiet machine, so that only what waits for ever fails."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of values that no standard allows


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedglioma.log.configure", lambda *_args, **_options: None)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital whose patients are prepared, the second one also without the series that will be damaged."""
    root = tmp_path_factory.mktemp("hospital")
    write_hospital(root / "data")
    assert prepared(root) == (0, 3)
    shutil.move(root / "data" / BAD, root / "away")
    assert prepared(root) == (0, 3)
    shutil.move(root / "away", root / "data" / BAD)
    return root


@pytest.fixture(scope="module")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of NIfTI."""
    root = tmp_path_factory.mktemp("nifti")
    write_cohort(root / "data")
    assert prepared(root, "auto") == (0, 3)
    return root


def prepared(root: Path, layout: str = "dicom") -> tuple[int, int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedglioma.log.configure", lambda *_args, **_options: None)
        result = run(root, layout)
    return result.exit_code, json.loads(result.stdout)["data"].get("prepared", 0)


def run(root: Path, layout: str = "dicom", cache: str = "cache") -> Result:
    settings = f"site: north\ndata: data\nlayout: {layout}\ncache: {cache}\nstate: state\n"
    (root / "north.yaml").write_text(settings, encoding="utf-8")
    words = ["--site", "north", "--config-dir", str(root), "prepare", "--spacing-mm", "8", "--format", "json"]
    return CliRunner().invoke(cli.app, words, catch_exceptions=False)


def copy(source: Path, root: Path) -> Path:
    for name in ("data", "cache", "state"):
        shutil.copytree(source / name, root / name)
    (root / "outside").mkdir()
    (root / "north.yaml").touch()
    return root


def tree(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return what lies in a folder besides cache and state, and how: size, time and kind."""
    found = {}
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if Path(place) != root or name not in ("cache", "state")]
        for name in (*folders, *files):
            if name != "north.yaml":
                path = os.path.join(place, name)  # noqa: PTH118 - a name need not be text
                status = os.lstat(path)
                found[path] = (status.st_size, status.st_mtime_ns, status.st_mode)
    return found


def told(data: dict[str, Any], outcome: str) -> Counter[str]:
    return Counter(data.get(outcome, {}))


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: kind.name)
def test_hostile_dicom_is_told_and_stops_nobody_else(kind: Hostile, hospital: Path, tmp_path: Path) -> None:
    judge(kind, copy(hospital, tmp_path / "root"))


@pytest.mark.parametrize("kind", BOMBS, ids=lambda kind: kind.name)
def test_bomb_of_nifti_is_told_and_stops_nobody_else(kind: Hostile, nifti: Path, tmp_path: Path) -> None:
    judge(kind, copy(nifti, tmp_path / "root"), "auto")


def judge(kind: Hostile, root: Path, layout: str | None = None) -> None:
    kind.breaks(root / "data")
    before = tree(root)
    scratch = root.parent / "scratch"
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(scratch))
        started = time.perf_counter()
        result = run(root, layout or kind.layout)
        seconds = time.perf_counter() - started
    assert seconds < LONGEST_S
    assert tree(root) == before
    assert not list(scratch.iterdir())
    assert "Traceback" not in result.output
    assert result.exit_code == kind.code
    data = json.loads(result.stdout)["data"]
    if kind.code:
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "defect" not in lines[0]
        return
    assert data["prepared"] == kind.usable
    assert told(data, "excluded") == Counter(kind.excluded)
    assert told(data, "warned") == Counter(kind.warned)
    assert {*kind.excluded, *kind.warned} <= REMEDIES.keys()
    reports = root / "cache" / "north"
    report = json.loads((reports / "prepare-report.json").read_text(encoding="utf-8"))
    findings = [*report["exclusions"], *report["warnings"]]
    assert {one["patient"] for one in findings} <= {kind.patient}
    assert all(one["message"].isprintable() and str(root) not in one["message"] for one in findings)
    page = (reports / "quality.html").read_text(encoding="utf-8")
    table = (reports / "findings.csv").read_text(encoding="utf-8-sig")
    assert EVIL not in page
    assert all(
        sign.isprintable() for sign in (page + table + result.output).replace("\n", "").replace("\r", "")
    )
    assert {stat.S_IMODE(path.stat().st_mode) for path in reports.iterdir()} == {0o600}
    assert left_over(root) == []


def left_over(root: Path) -> list[str]:
    """Return what a half-done run leaves in a cache: parts, and volumes that nobody vouches for."""
    cache = root / "cache"
    parts = [path.name for path in root.rglob("*.part")]
    return parts + [p.name for p in cache.glob("*.npy") if not p.with_suffix(".json").exists()]


# Disks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def root(hospital: Path, tmp_path: Path) -> Path:
    return copy(hospital, tmp_path / "root")


def in_one_line(result: Result, code: int = 1) -> str:
    assert result.exit_code == code
    assert "Traceback" not in result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    return line


class Full:
    """A disk that takes so many files more."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, _handle: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def forget(root: Path) -> None:
    """Take the patient with three sequences out of the cache, so that there is something to do."""
    for voucher in (root / "cache").glob("*.json"):
        if sum(json.loads(voucher.read_text())["record"]["present"]) == 3:
            voucher.with_suffix(".npy").unlink()
            voucher.unlink()


def goes_on(root: Path) -> None:
    assert left_over(root) == []
    assert run(root).exit_code == 0
    assert json.loads((root / "cache" / "north" / "prepare-report.json").read_text())["exclusions"] == []
    assert left_over(root) == []


@pytest.mark.parametrize("files", range(8))
def test_full_disk_ends_in_one_line_and_the_next_run_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    if files < 2:  # the array and what vouches for it; after them only reports are written
        forget(root)
    before = tree(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Full(files))
        assert "No space left on device" in in_one_line(run(root))
    assert tree(root) == before
    goes_on(root)


def test_file_that_cannot_grow_ends_in_one_line_and_the_next_run_goes_on(root: Path) -> None:
    forget(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The converter's volume of 28 KB fits, the prepared one does not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        result = run(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in in_one_line(result)
    goes_on(root)


def test_full_disk_for_the_hospitals_secret_ends_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root / "state")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Full(0))
        assert "the site's secret cannot be read or made (No space left on device)" in in_one_line(
            run(root), 2
        )
    assert list((root / "state").iterdir()) == []
    goes_on(root)


def test_full_disk_under_the_converter_is_not_told_of_the_patient(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(root)
    with monkeypatch.context() as patch:
        patch.setattr(dicom_volume, "PROGRAM", Path(shutil.which("false") or "/bin/false"))
        patch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(100, 100, 0))
        assert "No space left on device" in in_one_line(run(root))
    goes_on(root)


def test_disk_that_cannot_be_written_ends_in_one_line(root: Path) -> None:
    before = tree(root)
    line = in_one_line(run(root, cache="/sys/fedglioma"))  # not even root may
    assert "check space and permissions, then run again" in line
    assert tree(root) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write where permissions forbid")
def test_cache_without_permission_ends_in_one_line(root: Path) -> None:
    shutil.rmtree(root / "cache" / "north")
    (root / "cache").chmod(0o500)
    try:
        assert "Permission denied" in in_one_line(run(root))
    finally:
        (root / "cache").chmod(0o700)
    goes_on(root)
