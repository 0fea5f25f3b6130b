"""fedglioma-server start, status and stop: a federation of real hospitals.

Commands import what they need when they run, as those of ``cli.py``.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from fedglioma import log
from fedglioma.console import Format, LogLevel, OutputFormat, door, emit, human, interruptible
from fedglioma_server.options import with_run_settings

ServerFile = Annotated[
    Path,
    typer.Option("--config", envvar="FEDGLIOMA_SERVER_CONFIG", help="the server's settings", metavar="FILE"),
]


@with_run_settings
def start(
    settings: dict[str, Any],
    config: ServerFile = Path("server.yaml"),
    address: Annotated[
        str | None, typer.Option(envvar="FEDGLIOMA_ADDRESS", help="address that hospitals connect to")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            envvar="FEDGLIOMA_PORT", help="the one port that is open; 0: any free", min=0, max=65535
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="run folder; the same folder continues its run", metavar="DIR")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="FEDGLIOMA_METRICS_PORT", help="Prometheus on 127.0.0.1; 0: none", min=0, max=65535
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure", help="serve WITHOUT TLS; for tests on one machine only", show_default=False
        ),
    ] = None,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Run the central server: accept the hospitals over TLS and drive the rounds to the report.

    Started again after a crash or Ctrl-C it continues its run after the last complete round, with the
    same sites and the same random numbers. 'fedglioma-server stop' ends it after the round in flight.

    Exit code: 0 finished or stopped, 1 failed, 2 settings, 3 too few hospitals in time, 7 certificate
    or key, 130 interrupted.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_server.run_server import start as run

        changes = {
            "address": address,
            "port": port,
            "out": None if out is None else out.resolve(),
            "metrics_port": metrics_port,
            "insecure": insecure,
        }
        data, text = run(config, changes, settings)
        emit(data, text, output)


def status(config: ServerFile = Path("server.yaml"), output: Format = OutputFormat.TEXT) -> None:
    """Show what the running server does: rounds, hospitals, who is away, who was turned away."""
    with door(output):
        from fedglioma_server.run_control import status as look

        data, text = look(config)
        emit(data, text, output)


def stop(config: ServerFile = Path("server.yaml"), output: Format = OutputFormat.TEXT) -> None:
    """End the running server after the round in flight; 'start' continues the run later."""
    with door(output):
        from fedglioma_server.run_control import stop as end

        data, text = end(config)
        emit(data, text, output)
