"""fedglioma-server bundle: a released model for whoever works with MONAI.

Commands import what they need when they run, as those of ``cli.py``.
"""

from pathlib import Path
from typing import Annotated

import typer

from fedglioma import log
from fedglioma.console import Format, LogLevel, OutputFormat, door, emit, human, interruptible


def bundle(
    model: Annotated[
        Path, typer.Argument(help="folder of a released model (model/ of a run)", metavar="MODEL")
    ],
    out: Annotated[Path, typer.Option(help="folder to make; must not exist", metavar="DIR")],
    bundle_version: Annotated[str, typer.Option(help="the bundle's own version", metavar="X.Y.Z")] = "1.0.0",
    authors: Annotated[
        str | None,
        typer.Option(
            help="who trained it; default: the run's consortium", show_default=False, metavar="TEXT"
        ),
    ] = None,
    license_file: Annotated[
        Path | None,
        typer.Option(
            "--license", help="text of the weights' licence; by default none is granted", metavar="FILE"
        ),
    ] = None,
    without_attack: Annotated[
        bool,
        typer.Option(
            "--without-attack",
            help="bundle a model that states privacy though nobody attacked it; the bundle's page says so",
        ),
    ] = False,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Write a released model as a MONAI bundle: 'python -m monai.bundle' verifies and runs it.

    The weights stay safetensors. MONAI is needed to run a bundle, not to write one.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_server.monai_bundle import write_bundle

        data, text = write_bundle(
            model,
            out,
            bundle_version=bundle_version,
            authors=authors,
            license_file=license_file,
            without_attack=without_attack,
        )
        emit(data, text, output)
