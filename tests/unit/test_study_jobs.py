"""Several runs at a time in processes of their own: what failed is told, and nothing is left running."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedglioma.errors import DataError, NoUsableCase
from fedglioma_server.study_jobs import KILLED, run_apart

PATIENCE_S = 120.0
"""For a loaded machine to get processes going."""


def touch(path: Path) -> None:
    path.touch()


def by_name(path: Path) -> None:
    """Do what the path's name says."""
    if path.name == "refused":
        raise NoUsableCase("no usable case", "P1")
    if path.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if path.name == "full":
        raise OSError(28, "No space left on device", str(path))
    if path.name == "defect":
        raise unpicklable()
    path.touch()


def unpicklable() -> Exception:
    error = ValueError("of a defect")
    error.held = threading.Lock()  # type: ignore[attr-defined]
    return error


def together(path: Path) -> None:
    """End once another process is at work in the same folder."""
    (path.parent / f"{path.name}.here").touch()
    until(lambda: len(list(path.parent.glob("*.here"))) >= 2)
    path.touch()


def sleep(path: Path) -> None:
    """Work until somebody asks for the end, and put that on record."""
    path.with_suffix(".begun").touch()
    try:
        time.sleep(PATIENCE_S)
    except KeyboardInterrupt:
        path.with_suffix(".interrupted").touch()
        raise


def until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def apart(
    function: Callable[[Path], None], paths: list[Path], jobs: int = 2
) -> tuple[dict[int, str], list[Any]]:
    seen: list[Any] = []
    failed = run_apart(
        function,
        paths,
        [path.name for path in paths],
        jobs=jobs,
        began=seen.append,
        ended=lambda: seen.append("ended"),
    )
    return failed, seen


@pytest.fixture(autouse=True)
def nothing_left() -> Any:
    """Hold after every test that no process of ours runs any more."""
    yield
    assert not multiprocessing.active_children()


def test_every_task_is_done_and_told_in_order_of_its_begin(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abcde"]
    failed, seen = apart(touch, paths)
    assert not failed
    assert all(path.exists() for path in paths)
    assert [place for place in seen if place != "ended"] == [0, 1, 2, 3, 4]
    assert seen.count("ended") == 5
    for place in range(2, 5):
        assert seen[: seen.index(place)].count("ended") >= place - 1, "never more than two at a time"


def test_tasks_are_worked_on_at_the_same_time(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    assert apart(together, paths)[0] == {}
    assert all(path.exists() for path in paths)


def test_task_that_fails_or_is_killed_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("refused", "one", "killed", "two")]
    failed, seen = apart(by_name, paths)
    assert failed == {0: str(NoUsableCase("no usable case", "P1")), 2: KILLED}
    assert (tmp_path / "one").exists()
    assert (tmp_path / "two").exists()
    assert seen.count("ended") == 4


@pytest.mark.parametrize(("name", "error"), [("full", OSError), ("defect", RuntimeError)])
def test_other_errors_end_everything_and_come_out_as_they_were(
    tmp_path: Path, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"No space left on device|ValueError: of a defect") as raised:
        apart(by_name, [tmp_path / name, tmp_path / "one"], jobs=1)
    assert not isinstance(raised.value, DataError)
    assert not (tmp_path / "one").exists()


def test_ctrl_c_lets_those_that_run_end_in_order_and_begins_no_other(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]

    def press() -> None:
        until(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        apart(sleep, paths)
    presser.join()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{what}" for name in "ab" for what in ("begun", "interrupted")
    }
