"""Work on many cases in several processes: results in order, nothing left running whatever happens."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import TypeVar

import SimpleITK as sitk  # noqa: N813 - the name that its own manual uses

from fedglioma.errors import FedGliomaError

T = TypeVar("T")
R = TypeVar("R")


def map_cases(
    function: Callable[[T], R], tasks: Sequence[T], *, workers: int, done: Callable[[], None]
) -> list[R]:
    """Return the function's result for every task, in the tasks' order; ``done`` is called after each.

    With one worker, or one task, no process is started. A process works on one task at a time, so memory
    is bounded by the number of workers. On an error or Ctrl-C the tasks in flight are finished, the
    others dropped, and every process has ended before the exception goes on.

    Raises
    ------
    FedGliomaError
        A process was killed, as happens when memory runs out.
    """
    if min(workers, len(tasks)) <= 1:
        results = []
        for task in tasks:
            results.append(function(task))
            done()
        return results
    # Spawned, not forked: the caller may have threads (torch, ITK) whose locks a fork would copy.
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        with _ctrl_c_held_back():
            futures = [pool.submit(function, task) for task in tasks]
        for future in as_completed(futures):
            future.result()
            done()
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise FedGliomaError(
            "a preparing process was killed, perhaps for memory: run with fewer workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Start processes that never hear Ctrl-C, not even while they import; this one hears it afterwards."""
    resource_tracker.ensure_running()  # its start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Give one core to this process, and let it leave the world with its parent."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """End this process when its parent was killed: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
