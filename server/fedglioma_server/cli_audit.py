"""fedglioma-server audit: verify a log, compute a run's weights again.

Commands import what they need when they run, as those of ``cli.py``.
"""

from pathlib import Path
from typing import Annotated

import typer

from fedglioma import log
from fedglioma.console import (
    Format,
    LogLevel,
    OutputFormat,
    door,
    emit,
    emit_judged,
    human,
    interruptible,
    progress,
)

audit = typer.Typer(no_args_is_help=True, help="The hash-chained log of a run or of a hospital.")


@audit.command()
def verify(
    path: Annotated[
        Path,
        typer.Argument(help="run folder, a hospital's state folder, or the log itself", metavar="PATH"),
    ],
    head: Annotated[
        str | None,
        typer.Option(help="a head that somebody else kept: the log must have had it", metavar="DIGEST"),
    ] = None,
    output: Format = OutputFormat.TEXT,
) -> None:
    """Check that an audit log is as it was written, and name the first line that is not.

    Exit code: 0 it is, 1 it is not, 2 there is no such log.
    """
    with door(output):
        from fedglioma_server.run_audit import verify_log

        file, found = verify_log(path, head)
        emit_judged(found.data(), found.text(), output, found.error(file))


@audit.command()
def recompute(
    run: Annotated[Path, typer.Argument(help="run folder of a run with keep_updates", metavar="RUN")],
    round_number: Annotated[
        int | None, typer.Option("--round", help="only this round; default: all", min=1)
    ] = None,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Compute a run's weights again from the kept updates, and compare them bit for bit with the record.

    Exit code: 0 the same, 1 another or a damaged file, 2 no such run or its updates were not kept.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_server.run_audit import recompute_rounds

        with progress("recompute", unit="rounds") as shown:
            data, text = recompute_rounds(run, round_number, shown)
        emit(data, text, output)
