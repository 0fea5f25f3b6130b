import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedglioma.data.pool import map_cases
from fedglioma.errors import FedGliomaError


def _nothing() -> None:
    pass


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_each_is_counted(workers: int) -> None:
    done: list[None] = []
    assert map_cases(math.sqrt, [9.0, 4.0, 1.0], workers=workers, done=lambda: done.append(None)) == [3, 2, 1]
    assert len(done) == 3


def test_no_process_is_started_for_nothing() -> None:
    assert map_cases(math.sqrt, [], workers=8, done=_nothing) == []
    assert map_cases(lambda x: x + 1, [1], workers=8, done=_nothing) == [2]  # a lambda cannot travel


def test_error_of_a_task_goes_on() -> None:
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        map_cases(math.sqrt, [1.0, -1.0], workers=2, done=_nothing)


def test_killed_process_is_told_in_words() -> None:
    with pytest.raises(FedGliomaError, match="run with fewer workers"):
        map_cases(os._exit, [1, 1], workers=2, done=_nothing)


PROGRAM = """
import pathlib, time
from fedglioma.data.pool import map_cases
if __name__ == "__main__":
    map_cases(time.sleep, [1.0] * 60, workers=2, done=lambda: print("done", flush=True))
"""


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def _started(tmp_path: Path) -> "subprocess.Popen[str]":
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    root = Path(__file__).parents[2]
    return subprocess.Popen(  # noqa: S603 - our own text
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def _within_a_minute(happened: Callable[[], bool]) -> bool:
    limit = time.monotonic() + 60
    while not happened():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def _all_end(pids: list[int]) -> bool:
    return _within_a_minute(lambda: not any(_alive(pid) for pid in pids))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc to see the processes"
)


@needs_proc
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_or_killed_parent(tmp_path: Path, how: signal.Signals) -> None:
    program = _started(tmp_path)
    assert program.stdout is not None
    assert program.stdout.readline() == "done\n"
    children = _children(program.pid)
    assert len(children) >= 2
    if how is signal.SIGINT:
        os.killpg(program.pid, how)  # as a terminal does: to the whole group
    else:
        program.kill()
    _, said = program.communicate(timeout=60)
    assert _all_end(children)
    assert said.count("Traceback") == (1 if how is signal.SIGINT else 0)  # the parent's own, no worker's


@needs_proc
def test_ctrl_c_while_the_processes_start_is_the_parents_alone(tmp_path: Path) -> None:
    program = _started(tmp_path)
    assert _within_a_minute(lambda: len(_children(program.pid)) == 3)  # with Python's tracker of resources
    children = _children(program.pid)
    time.sleep(0.2)  # they import now
    os.killpg(program.pid, signal.SIGINT)
    _, said = program.communicate(timeout=60)
    assert _all_end(children)
    assert said.count("Traceback") == 1
