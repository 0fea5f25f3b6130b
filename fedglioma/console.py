"""How a command talks: results on stdout, everything human on stderr, one exit code.

Results are text or one JSON envelope; progress is a bar on a terminal and a plain line every few
seconds elsewhere; an error is one line, never a traceback.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import lru_cache
from types import FrameType
from typing import Annotated, Any, NoReturn

import click
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar
from rich.text import Text

from fedglioma.errors import FedGliomaError
from fedglioma.words import one_line

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
INTERRUPTED = 130
PLAIN = "NO TLS: everything travels readable for anyone on the way; for tests on one machine only"
PLAIN_INTERVAL_S = 5.0
WORTH_AN_ESTIMATE = 20
"""The time left is guessed once a twentieth is done: the first steps also start processes."""

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""


def silent(done: int, total: int) -> None:
    """Show nothing: the progress of callers that do not ask for any."""


class OutputFormat(StrEnum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


Format = Annotated[OutputFormat, typer.Option("--format", help="text, or json: one envelope on stdout")]
LogLevel = Annotated[
    str,
    typer.Option(
        "--log-level",
        envvar="FEDGLIOMA_LOG_LEVEL",
        help="how much to tell on stderr",
        click_type=click.Choice(["DEBUG", "INFO", "WARNING"], case_sensitive=False),
    ),
]


@lru_cache(maxsize=1)
def human() -> Console:
    """Return the one console on stderr, so that log lines pass above a bar instead of through it.

    It writes to whatever ``sys.stderr`` is at the time; rich itself respects ``NO_COLOR``.
    """
    return Console(stderr=True, highlight=False, emoji=False)


def emit(data: dict[str, Any], text: str, output: OutputFormat, *, exit_code: int = 0) -> None:
    """Print a command's result on stdout: ``text``, or ``data`` in the JSON envelope."""
    if output is OutputFormat.JSON:
        status = "ok" if exit_code == 0 else "error"
        envelope = {"schema_version": SCHEMA_VERSION, "status": status, "exit_code": exit_code, "data": data}
        sys.stdout.write(json.dumps(envelope, indent=2, allow_nan=False, default=str) + "\n")
    elif text:
        sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def emit_judged(data: dict[str, Any], text: str, output: OutputFormat, error: FedGliomaError | None) -> None:
    """Print a result whose verdict may be bad: with an ``error`` the command ends with its exit code."""
    if error is None:
        emit(data, text, output)
    elif output is OutputFormat.JSON:
        emit(data | {"error": str(error)}, "", output, exit_code=error.exit_code)
        raise SystemExit(error.exit_code)
    else:
        emit(data, text, output)
        raise error


def fail(error: FedGliomaError, output: OutputFormat) -> NoReturn:
    """Print the error in one line (and as the envelope, if JSON was asked for) and end with its code."""
    words = one_line(str(error))
    human().print(Text.assemble(("error:", "bold red"), f" {words}"), soft_wrap=True)
    if output is OutputFormat.JSON:
        emit({"error": words, "kind": type(error).__name__}, "", output, exit_code=error.exit_code)
    raise SystemExit(error.exit_code)


@contextmanager
def door(output: OutputFormat) -> Iterator[None]:
    """Turn what a command raises into one line and an exit code: the only place that catches.

    A full disk, a missing permission and too little memory are the operator's to mend, so they are told
    in words; any other surprise is a defect and is named as one, with its traceback at log level DEBUG.
    """
    try:
        yield
    except FedGliomaError as error:
        fail(error, output)
    except KeyboardInterrupt:
        human().print("[yellow]interrupted:[/] what was finished is kept; the same command continues it")
        if output is OutputFormat.JSON:
            emit({"error": "interrupted", "kind": "KeyboardInterrupt"}, "", output, exit_code=INTERRUPTED)
        raise SystemExit(INTERRUPTED) from None
    except (click.exceptions.Exit, click.Abort, click.ClickException):
        raise
    except MemoryError:
        fail(FedGliomaError("out of memory: close other programs, or ask for less at once"), output)
    except OSError as error:
        logger.debug("operating system error", exc_info=True)
        place = f" ({error.filename})" if error.filename else ""
        fail(
            FedGliomaError(f"{error.strerror or error}{place}: check space and permissions, then run again"),
            output,
        )
    except Exception as error:
        logger.debug("defect", exc_info=True)
        fail(FedGliomaError(_defect(error)), output)


def _defect(error: Exception) -> str:
    words = next(iter(str(error).splitlines()), "")
    return (
        f"a defect in fedglioma: {type(error).__name__}: {words} "
        "(--log-level DEBUG shows where; please report it)"
    )


@contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM end a command the way Ctrl-C does, so that both leave a resumable state."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def progress(title: str, *, unit: str = "") -> Iterator[Progress]:
    """Give a callback ``(done, total)`` that shows a bar on a terminal and plain lines elsewhere."""
    console = human()
    if not console.is_terminal:
        yield _plain(title, unit, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with RichBar(*columns, console=console, transient=False) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _plain(title: str, unit: str, console: Console) -> Progress:
    began, last, shown = time.monotonic(), 0.0, -1

    def update(done: int, total: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if done != shown and (done == total or now - last >= PLAIN_INTERVAL_S):
            last, shown = now, done
            line = f"{title}: {done}/{total} {unit}".rstrip()
            if done < total <= WORTH_AN_ESTIMATE * done:
                left = (now - began) / done * (total - done)
                line += f", about {_duration(left)} left"
            console.print(line, markup=False, soft_wrap=True)

    return update


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def prepare_environment() -> None:
    """Set what libraries read when they are imported; commands call it before they import any.

    Flower's telemetry, update check and installation at run time are switched off. Idle OpenMP threads
    sleep instead of spinning: on a machine with other work a spinning pair made a step a hundred times
    slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("FLWR_LOG_LEVEL", "WARNING")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
