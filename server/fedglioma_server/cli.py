"""fedglioma-server: the command line, and the commands that work on one machine's files.

The federation's own commands are in ``cli_federation.py`` (start, status, stop), ``cli_provision.py``,
``cli_audit.py`` and ``cli_bundle.py``; ``evaluate`` is in ``cli_evaluate.py``.

Commands import what they need when they run: ``--help`` answers at once, and Flower is first imported
after its telemetry was switched off.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from fedglioma import log
from fedglioma.config.site import MOST_PROCESSES
from fedglioma.console import (
    Format,
    LogLevel,
    OutputFormat,
    door,
    emit,
    emit_judged,
    human,
    interruptible,
    prepare_environment,
    progress,
)
from fedglioma.errors import ConfigError
from fedglioma_server.cli_audit import audit
from fedglioma_server.cli_bundle import bundle
from fedglioma_server.cli_evaluate import evaluate
from fedglioma_server.cli_federation import start, status, stop
from fedglioma_server.cli_provision import provision
from fedglioma_server.options import Cohorts, Workers, with_run_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The coordinating centre's side of a fedglioma federation. Research use only, not a medical device.",
)
for command in (provision, start, status, stop, bundle, evaluate):
    app.command()(command)
app.add_typer(audit, name="audit")

Overlap = Annotated[
    float,
    typer.Option(
        help="1: imaging signs as rare as in the literature; 0: every genotype shows its signs", min=0, max=1
    ),
]

SYNTHETIC_BANNER = "SYNTHETIC DATA: made-up patients, nothing here is clinical evidence"


def main() -> None:
    """Run the command line."""
    prepare_environment()
    app()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """Print the version where asked."""
    if show_version:
        typer.echo(f"fedglioma {version('fedglioma')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        raise typer.Exit(2)


@app.command()
@with_run_settings
def simulate(
    settings: dict[str, Any],
    cohort: Cohorts = [],  # noqa: B006 (typer copies it)
    synthetic: Annotated[
        int | None,
        typer.Option(help="train on this many synthetic patients instead of a cohort", min=12, metavar="N"),
    ] = None,
    synthetic_size: Annotated[
        int, typer.Option(help="edge of the synthetic volumes in voxels (of 176 mm)", min=16, max=176)
    ] = 24,
    synthetic_overlap: Overlap = 0.5,
    sites: Annotated[
        str | None,
        typer.Option(
            help="which hospitals: names from the site column, a number to divide the patients into, "
            "or settings files (site_config/a.yaml,b.yaml or a folder); default: all of the site column",
            metavar="SPEC",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="inline (one process) or ray (worker processes, optional extra)")
    ] = "inline",
    out: Annotated[
        Path | None,
        typer.Option(help="run folder; the same folder continues an interrupted run", metavar="DIR"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDGLIOMA_CACHE", help="prepared volumes; default: 'cache' beside the run folder"
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of run settings", metavar="FILE")] = None,
    workers: Workers = 0,
    threads: Annotated[int, typer.Option(help="cores that train; 0: all", min=0, max=MOST_PROCESSES)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    small_cell_limit: Annotated[
        int,
        typer.Option(
            help="counts from 1 to below this never leave a simulated hospital; 1: no suppression", min=1
        ),
    ] = 5,
    splits: Annotated[
        Path | None,
        typer.Option(help="table of patients and splits (train, selection, report)", metavar="FILE"),
    ] = None,
    fold: Annotated[str | None, typer.Option(help="which fold of --splits", metavar="NAME")] = None,
    initial: Annotated[
        Path | None,
        typer.Option("--init", help="model folder of another run to start from", metavar="MODEL"),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(help="YAML file of a study: many runs, one table; see docs/studies.md", metavar="FILE"),
    ] = None,
    study_size: Annotated[
        str | None, typer.Option(help="size of the study instead of the one in its file", metavar="SIZE")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="runs of the study at a time; they share the cores", min=1, max=MOST_PROCESSES)
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be run, and stop")] = False,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Train one shared model over simulated hospitals on this machine, evaluate it, and write a report.

    Ends with a run folder: the selected model, held-out metrics, survival curves and report.html.
    Stopped with Ctrl-C, the same command continues after the last complete round.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_server.run_simulation import Request, dry, run

        if study is None and study_size is not None:
            raise ConfigError(f"--study-size {study_size}: is the size of a --study FILE; give both")
        if study is None and jobs > 1:
            raise ConfigError(f"--jobs {jobs}: runs of a --study FILE at a time; give both")
        request = Request(
            given=settings,
            config=config,
            cohorts=tuple(cohort),
            synthetic=synthetic,
            synthetic_size=synthetic_size,
            synthetic_overlap=synthetic_overlap,
            sites=sites,
            engine=engine,
            out=out,
            cache=cache,
            workers=workers,
            threads=threads,
            device=device,
            small_cell_limit=small_cell_limit,
            splits=splits,
            fold=fold,
            initial=initial,
        )
        if study is not None:
            from fedglioma_server import run_study

            if splits is not None or initial is not None or fold is not None:
                raise ConfigError("--study: its file says who trains; leave --splits, --fold and --init out")
            if dry_run:
                emit(*run_study.dry(request, study, study_size), output)
            else:
                data, text, failure = run_study.run(request, study, study_size, jobs)
                emit_judged(data, text, output, failure)
            return
        data, text = dry(request) if dry_run else run(request)
        emit(data, text, output)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="folder to make; must not exist or be empty", metavar="DIR")],
    patients: Annotated[int, typer.Option(help="how many patients", min=1)] = 60,
    sites: Annotated[
        str,
        typer.Option(
            help="names of hospitals, or how many; ningxia, zhengzhou and henan have scanners of their own"
        ),
    ] = "ningxia,zhengzhou,henan",
    size: Annotated[
        int, typer.Option(help="edge in voxels of a 176 mm cube, 16 to 176; 0: 240 x 240 x 155 at 1 mm")
    ] = 32,
    overlap: Overlap = 0.5,
    label_noise: Annotated[
        float, typer.Option(help="probability that pathology erred, per marker", min=0, max=1)
    ] = 0.0,
    layout: Annotated[str, typer.Option(help="bids, brats2021 or brats2023")] = "bids",
    by_site: Annotated[
        bool, typer.Option("--by-site", help="one cohort per hospital, each in a folder of its name")
    ] = False,
    seed: Annotated[int, typer.Option(help="seed of everything", min=0)] = 0,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Write a synthetic multi-site cohort: made-up brains, tumours, scanners and survival.

    Seconds per hundred patients at the default size. Nothing in it is clinical evidence.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_server.run_synthesis import write_cohort

        human().print(f"[bold yellow]{SYNTHETIC_BANNER}[/]")
        with progress("synthesize", unit="patients") as shown:
            data, text = write_cohort(
                out,
                patients=patients,
                sites=sites,
                size=size,
                overlap=overlap,
                label_noise=label_noise,
                layout=layout,
                by_site=by_site,
                seed=seed,
                progress=shown,
            )
        emit(data, text, output)


@app.command()
def survival(
    table: Annotated[Path, typer.Argument(help="CSV or TSV table, or a cohort's folder", metavar="TABLE")],
    time: Annotated[str | None, typer.Option(help="column of follow-up times; guessed where obvious")] = None,
    event: Annotated[
        str | None, typer.Option(help="column of deaths (1) and censored patients (0); guessed")
    ] = None,
    group: Annotated[
        list[str],
        typer.Option(
            help="column that divides the patients, may be repeated; default: idh, atrx, codel_1p19q"
        ),
    ] = [],  # noqa: B006 (typer copies it)
    cohort: Annotated[
        str | None, typer.Option(help="column of LGG / GBM or of WHO grades that makes the groups; guessed")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="days, months or years; by default from the column's name")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for results, curves and figures", metavar="DIR")
    ] = None,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Kaplan-Meier, log-rank and Cox by marker, for lower-grade, glioblastoma and mixed groups."""
    with door(output):
        log.configure(log_level, console=human())
        from fedglioma_server.run_survival import analyse_file

        data, text = analyse_file(
            table, time=time, event=event, groups=group, cohort=cohort, unit=unit, out=out
        )
        emit(data, text, output)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="run folder", metavar="RUN")],
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Write report.html of a run's or a study's folder again, from what was saved."""
    with door(output):
        log.configure(log_level, console=human())
        from fedglioma_server.report import write_report
        from fedglioma_server.study_report import write_study_report
        from fedglioma_server.study_table import RESULTS

        if not run.is_dir():
            raise ConfigError(f"{run}: no such run folder")
        path = write_study_report(run) if (run / RESULTS).is_file() else write_report(run)
        emit({"report": str(path)}, f"report: {path}", output)
