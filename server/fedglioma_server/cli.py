"""fedglioma-server: simulate a federation, make a synthetic cohort, analyse survival, write a report.

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
    human,
    interruptible,
    prepare_environment,
    progress,
)
from fedglioma.errors import ConfigError, FedGliomaError, IdentityError
from fedglioma_server.options import with_run_settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The coordinating centre's side of a fedglioma federation. Research use only, not a medical device.",
)
audit = typer.Typer(no_args_is_help=True, help="The hash-chained log of a run or of a hospital.")
app.add_typer(audit, name="audit")

Cohorts = Annotated[
    list[Path],
    typer.Option("--cohort", help="folder with participants.tsv and images; may be repeated", metavar="DIR"),
]
Workers = Annotated[
    int,
    typer.Option(help="processes that prepare cases; 0: one per core", min=0, max=MOST_PROCESSES),
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
    synthetic_overlap: Annotated[
        float,
        typer.Option(
            help="1: imaging signs as rare as in the literature; 0: every genotype shows its signs",
            min=0,
            max=1,
        ),
    ] = 0.5,
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
        )
        data, text = dry(request) if dry_run else run(request)
        emit(data, text, output)


ServerFile = Annotated[
    Path,
    typer.Option("--config", envvar="FEDGLIOMA_SERVER_CONFIG", help="the server's settings", metavar="FILE"),
]


@app.command()
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


@app.command()
def status(config: ServerFile = Path("server.yaml"), output: Format = OutputFormat.TEXT) -> None:
    """Show what the running server does: rounds, hospitals, who is away, who was turned away."""
    with door(output):
        from fedglioma_server.run_control import status as look

        data, text = look(config)
        emit(data, text, output)


@app.command()
def stop(config: ServerFile = Path("server.yaml"), output: Format = OutputFormat.TEXT) -> None:
    """End the running server after the round in flight; 'start' continues the run later."""
    with door(output):
        from fedglioma_server.run_control import stop as end

        data, text = end(config)
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
    overlap: Annotated[
        float,
        typer.Option(
            help="1: imaging signs as rare as in the literature; 0: every genotype shows its signs",
            min=0,
            max=1,
        ),
    ] = 0.5,
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
def evaluate(
    model: Annotated[
        Path, typer.Argument(help="folder of a released model (model/ of a run)", metavar="MODEL")
    ],
    cohort: Cohorts,
    out: Annotated[Path, typer.Option(help="folder for metrics, predictions and figures", metavar="DIR")],
    cache: Annotated[Path | None, typer.Option(envvar="FEDGLIOMA_CACHE", help="prepared volumes")] = None,
    workers: Workers = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    bootstrap: Annotated[int, typer.Option(help="resamples behind every interval", min=100)] = 1000,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Measure a saved model on a labelled cohort: metrics with intervals, per site and modality subset."""
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_server.run_evaluation import evaluate_model

        data, text = evaluate_model(
            model, cohort, out, cache=cache, workers=workers, device=device, resamples=bootstrap
        )
        emit(data, text, output)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="run folder", metavar="RUN")],
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Write report.html of a run folder again, from what the run saved."""
    with door(output):
        log.configure(log_level, console=human())
        from fedglioma_server.report import write_report

        if not run.is_dir():
            raise ConfigError(f"{run}: no such run folder")
        path = write_report(run)
        emit({"report": str(path)}, f"report: {path}", output)


@app.command()
def provision(
    out: Annotated[Path, typer.Option(help="the consortium's folder", metavar="DIR")] = Path("consortium"),
    name: Annotated[
        str | None,
        typer.Option(
            help="the consortium, as its certificates name it; default: fedglioma", show_default=False
        ),
    ] = None,
    host: Annotated[
        list[str],
        typer.Option(
            help="name or address of the server, may be repeated; kits connect to the first", metavar="HOST"
        ),
    ] = [],  # noqa: B006 (typer copies it)
    port: Annotated[
        int | None,
        typer.Option(
            help="port that kits connect to; default: that of server.yaml, at first 8443", min=1, max=65535
        ),
    ] = None,
    site: Annotated[
        list[str], typer.Option(help="hospital that gets a key and a kit, may be repeated", metavar="NAME")
    ] = [],  # noqa: B006
    site_key: Annotated[
        list[str],
        typer.Option(
            help="hospital that made its own key ('fedglioma-client keygen'): its kit has no private key; "
            "may be repeated",
            metavar="NAME=FILE",
        ),
    ] = [],  # noqa: B006
    days: Annotated[
        int | None,
        typer.Option(help="validity of the server's certificate; default: 397", min=1, max=3650),
    ] = None,
    ca_days: Annotated[
        int | None, typer.Option(help="validity of the authority; default: 3650", min=1, max=18250)
    ] = None,
    renew_server: Annotated[
        bool, typer.Option("--renew-server", help="a new server certificate; the old one is kept beside it")
    ] = False,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="with --renew-server: with a new private key")
    ] = False,
    renew_site: Annotated[
        list[str],
        typer.Option(
            help="a new key and kit for a hospital, the old key is barred; with --site-key its own new one; "
            "may be repeated",
            metavar="NAME",
        ),
    ] = [],  # noqa: B006
    revoke: Annotated[
        list[str],
        typer.Option(help="bar a hospital, also from a running server; may be repeated", metavar="NAME"),
    ] = [],  # noqa: B006
    contact: Annotated[
        str | None, typer.Option(help="whom a hospital should ask, for the kit's page", metavar="TEXT")
    ] = None,
    show_status: Annotated[
        bool,
        typer.Option("--status", help="show what ends when, and stop; with 7 if something has ended"),
    ] = False,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Make the consortium's certificates, and a start-up kit with a key for each hospital.

    Typed again with another --site it adds that hospital. What is there is kept, never overwritten.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_server.provision_request import Request
        from fedglioma_server.provision_status import status
        from fedglioma_server.run_provision import provision as make

        request = Request(
            out=out,
            name=name,
            hosts=tuple(host),
            port=port,
            sites=tuple(site),
            site_keys=tuple(site_key),
            days=days,
            ca_days=ca_days,
            renew_server=renew_server,
            new_key=new_key,
            renew_sites=tuple(renew_site),
            revoke=tuple(revoke),
            contact=contact,
        )
        data, text, reason = status(request) if show_status else (*make(request), None)
        if reason is not None and output is OutputFormat.JSON:
            emit(data | {"error": reason}, "", output, exit_code=IdentityError.exit_code)
            raise typer.Exit(IdentityError.exit_code)
        emit(data, text, output)
        if reason is not None:
            raise IdentityError(reason)


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
        if found.broken is not None and output is OutputFormat.JSON:
            emit(found.data() | {"error": found.verdict}, "", output, exit_code=found.exit_code)
            raise typer.Exit(found.exit_code)
        emit(found.data(), found.text(), output)
        if found.broken is not None:
            raise FedGliomaError(f"{file}: {found.verdict}")


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
