"""fedglioma-server evaluate: a saved model, measured on a labelled cohort or attacked.

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
)
from fedglioma.errors import ConfigError
from fedglioma_server.options import Cohorts, Workers

ATTACK = "Attack"
SHADOWS = 8


def evaluate(
    model: Annotated[
        Path, typer.Argument(help="folder of a released model (model/ of a run)", metavar="MODEL")
    ],
    out: Annotated[Path, typer.Option(help="folder for metrics, predictions and figures", metavar="DIR")],
    cohort: Cohorts = [],  # noqa: B006 (typer copies it)
    cache: Annotated[Path | None, typer.Option(envvar="FEDGLIOMA_CACHE", help="prepared volumes")] = None,
    workers: Workers = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    bootstrap: Annotated[int, typer.Option(help="resamples behind every interval", min=100)] = 1000,
    attack: Annotated[
        bool,
        typer.Option(
            "--attack",
            help="measure what the model gives away of its patients; --cohort are patients it never saw",
            rich_help_panel=ATTACK,
        ),
    ] = False,
    members: Annotated[
        list[Path],
        typer.Option(
            help="cohort that the model was trained on; may be repeated",
            metavar="DIR",
            rich_help_panel=ATTACK,
        ),
    ] = [],  # noqa: B006 (typer copies it)
    run: Annotated[
        Path | None,
        typer.Option(
            help="the model's run folder: its stated privacy and, of a simulation, who trained; default: the "
            "run that the model lies in",
            metavar="RUN",
            rich_help_panel=ATTACK,
        ),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(
            help="models trained on random halves of the patients; 0: loss threshold alone",
            min=0,
            max=1024,
            rich_help_panel=ATTACK,
        ),
    ] = SHADOWS,
    attack_epochs: Annotated[
        int | None,
        typer.Option(
            help="epochs that a shadow model trains; default: as the released round",
            min=1,
            rich_help_panel=ATTACK,
        ),
    ] = None,
    inversion: Annotated[
        bool,
        typer.Option(
            "--inversion/--no-inversion",
            help="try to tell and to draw patients from one update",
            rich_help_panel=ATTACK,
        ),
    ] = True,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate",
            help="exit code 1 where an attack is above what the stated privacy allows",
            rich_help_panel=ATTACK,
        ),
    ] = False,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Measure a saved model on a labelled cohort: metrics with intervals, per site and modality subset.

    With --attack instead: whether the model tells who it was trained on, and one update whose it is.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        if not attack:
            for option, given in (
                ("--members", members),
                ("--run", run),
                ("--shadows", shadows != SHADOWS),
                ("--attack-epochs", attack_epochs),
                ("--no-inversion", not inversion),
                ("--gate", gate),
            ):
                if given:
                    raise ConfigError(f"{option}: belongs to --attack; give both, or leave it out")
            from fedglioma_server.run_evaluation import evaluate_model

            data, text = evaluate_model(
                model, cohort, out, cache=cache, workers=workers, device=device, resamples=bootstrap
            )
            emit(data, text, output)
            return
        from fedglioma_server.run_attack import AttackRequest, attack_model

        request = AttackRequest(
            model=model,
            out=out,
            members=tuple(members),
            cohorts=tuple(cohort),
            run=run,
            shadows=shadows,
            epochs=attack_epochs,
            inversion=inversion,
            cache=cache,
            workers=workers,
            device=device,
            resamples=bootstrap,
        )
        data, text, refused = attack_model(request)
        emit_judged(data, text, output, refused if gate else None)
