import math
import os
import signal
import subprocess
import sys
import time
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


def _run_until_busy(tmp_path: Path) -> tuple["subprocess.Popen[str]", list[int]]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    root = Path(__file__).parents[2]
    program = subprocess.Popen(  # noqa: S603 - our own text
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "done\n"
    return program, _children(program.pid)


def _all_end(pids: list[int], seconds: float = 10) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc to see the processes")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_or_killed_parent(tmp_path: Path, how: signal.Signals) -> None:
    program, children = _run_until_busy(tmp_path)
    assert len(children) >= 2
    if how is signal.SIGINT:
        os.killpg(program.pid, how)  # as a terminal does: to the whole group
    else:
        program.kill()
    _, said = program.communicate(timeout=20)
    assert _all_end(children)
    assert said.count("Traceback") == (1 if how is signal.SIGINT else 0)  # the parent's own, no worker's
