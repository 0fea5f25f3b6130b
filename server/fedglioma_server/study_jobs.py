"""Several runs of a study at a time, each in a process of its own; none is left whatever happens."""

import logging
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pickle import PicklingError
from types import FrameType
from typing import Final, TypeVar

from fedglioma import log
from fedglioma.data.pool import end_with_parent
from fedglioma.errors import FedGliomaError
from fedglioma_server.samerun import OtherRun

logger = logging.getLogger(__name__)

T = TypeVar("T")

STOP_S: Final = 60.0
"""For a run that is told to end: it ends between two steps, and puts on record that it was interrupted."""
KILLED: Final = "its process was killed, perhaps for memory: run with fewer --jobs"


@dataclass(frozen=True)
class _Running:
    place: int
    process: SpawnProcess
    answer: Connection


def run_apart(
    function: Callable[[T], None],
    tasks: Sequence[T],
    names: Sequence[str],
    *,
    jobs: int,
    began: Callable[[int], None],
    ended: Callable[[], None],
) -> dict[int, str]:
    """Call a function of a module with every task, ``jobs`` at a time, and return why some failed, by place.

    A task whose process is killed has failed, and the others go on. On ``OtherRun``, on any error that is no
    ``FedGliomaError``, and on Ctrl-C, those that run get the chance to end in order, as by Ctrl-C, and no
    process is left before the exception goes on.

    Parameters
    ----------
    names : sequence of str
        What a task's log lines begin with.
    began : callable
        Told of the place of each task that begins.
    ended : callable
        Called after each.
    """
    waiting = deque(range(len(tasks)))
    running: list[_Running] = []
    failed: dict[int, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                place = waiting.popleft()
                with _ctrl_c_later():
                    running.append(_start(place, function, tasks[place], names[place]))
                began(place)
            ready = wait([one.answer for one in running])
            for one in [one for one in running if one.answer in ready]:
                said = _said(one)
                running.remove(one)
                if isinstance(said, Exception):
                    raise said
                if said is not None:
                    failed[one.place] = said
                ended()
    finally:
        _stop(running)
    return failed


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends, and for good from a process that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(place: int, function: Callable[[T], None], task: T, name: str) -> _Running:
    # Spawned, not forked: this process has threads (torch, Flower) whose locks a fork would copy.
    context = multiprocessing.get_context("spawn")
    answer, theirs = context.Pipe(duplex=False)
    level = logging.getLevelName(logging.getLogger().level)
    process = context.Process(target=_work, args=(function, task, name, level, theirs))
    process.start()
    theirs.close()
    return _Running(place, process, answer)


def _said(one: _Running) -> str | Exception | None:
    """Return why a task failed, or what else came of it; None where it ended well."""
    try:
        said: str | Exception | None = one.answer.recv()
    except EOFError:
        said = KILLED
    one.answer.close()
    one.process.join()
    return said


def _stop(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        one.process.join(STOP_S)
        if one.process.is_alive():
            one.process.kill()
            one.process.join()
        one.answer.close()


def _work(function: Callable[[T], None], task: T, name: str, level: str, answer: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which says when to end
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=end_with_parent, daemon=True).start()
    log.configure(level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_Named(name))
    try:
        function(task)
        answer.send(None)
    except KeyboardInterrupt:
        raise SystemExit(1) from None
    except OtherRun as error:
        answer.send(error)
    except FedGliomaError as error:
        logger.warning("%s", error)
        answer.send(str(error))
    except Exception as error:
        with suppress(PicklingError, TypeError, AttributeError):
            answer.send(error)
            return
        answer.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Named(logging.Filter):
    """Puts a task's name before each of its log lines."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.task = name

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{self.task}: {record.getMessage()}", ()
        return True
