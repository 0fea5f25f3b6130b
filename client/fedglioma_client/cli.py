"""fedglioma-client: check a hospital's installation and data, and prepare its images.

Commands import what they need when they run: ``--help`` answers at once, and Flower is first imported
after its telemetry was switched off.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedglioma import log
from fedglioma.config.run import Inference, Preprocessing, RunConfig
from fedglioma.config.site import SITE_NAME, load_site_config
from fedglioma.console import (
    PLAIN,
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
from fedglioma.errors import ConfigError, DataError

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A hospital's side of a fedglioma federation. Research use only, not a medical device.\n\n"
    "Write [bold]site_config/NAME.yaml[/] first (copy example.yaml, which explains every line), then run "
    "[bold]fedglioma-client --site NAME check[/] and, when nothing fails, "
    "[bold]fedglioma-client --site NAME prepare[/]. Neither sends anything of the patients anywhere. "
    "[bold]fedglioma-client --site NAME[/] then joins the federation and serves it until it is stopped.",
)
audit = typer.Typer(
    no_args_is_help=True, help="The hash-chained log of what this hospital was asked and sent."
)
app.add_typer(audit, name="audit")

Spacing = Annotated[
    float,
    typer.Option(
        envvar="FEDGLIOMA_SPACING_MM",
        help="voxel edge of the prepared images in mm; leave it unless the coordinator announces another",
        min=0.5,
        max=8,
    ),
]

NO_USABLE_CASE = "no case is usable; patients and reasons are in the list"


@dataclass(frozen=True)
class Chosen:
    """Which hospital was asked for."""

    site: str | None
    folder: Path

    def name(self) -> str:
        """Return the site's name.

        Raises
        ------
        ConfigError
            No site was named, or what was named is not a site's name.
        """
        if self.site is None:
            raise ConfigError(
                "--site: name the hospital before the command, as in 'fedglioma-client --site NAME check'"
            )
        if not SITE_NAME.fullmatch(self.site):
            raise ConfigError(
                f"--site {self.site}: a site's name is 1-32 lower-case letters, digits, - or _; "
                "the name alone, without folder and .yaml"
            )
        return self.site

    def path(self) -> tuple[str, Path]:
        """Return the site's name and where its settings lie.

        Raises
        ------
        ConfigError
            No site was named, its name is none, or it has no settings.
        """
        site = self.name()
        path = self.folder / f"{site}.yaml"
        if not path.is_file():
            there = ", ".join(sorted(other.stem for other in self.folder.glob("*.yaml"))) or "none"
            raise ConfigError(f"{path}: no such settings file; sites in {self.folder}: {there}")
        return site, path


def main() -> None:
    """Run the command line."""
    prepare_environment()
    app()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    site: Annotated[
        str | None,
        typer.Option(envvar="FEDGLIOMA_SITE", help="short name of the hospital", metavar="NAME"),
    ] = None,
    config_dir: Annotated[
        Path,
        typer.Option(
            envvar="FEDGLIOMA_CONFIG_DIR", help="folder that holds NAME.yaml, the settings", metavar="DIR"
        ),
    ] = Path("site_config"),
    once: Annotated[
        bool, typer.Option("--once", help="end when the run has finished, instead of waiting for the next")
    ] = False,
    log_level: LogLevel = "INFO",
    show_version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """Remember the site; without a command, join the federation."""
    if show_version:
        typer.echo(f"fedglioma {version('fedglioma')}")
        raise typer.Exit
    context.obj = Chosen(site, config_dir)
    if context.invoked_subcommand is not None:
        return
    if site is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
    with door(OutputFormat.TEXT), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_client.supervise import join

        _, path = context.ensure_object(Chosen).path()
        config = load_site_config(path)
        if config.insecure:
            human().print(f"[bold red]{PLAIN}[/]")
        join(config, path, once=once, log_level=log_level)


@app.command()
def check(
    context: typer.Context,
    spacing_mm: Spacing = 1.0,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Look at settings, data, disk, memory, GPU and the way to the server. Changes nothing.

    One line each: ok, warning (works, but have a look) or failed (must be mended), with what to do.
    Patients with a problem are named below the lines, on this terminal only.

    Exit code: 0 nothing failed, 1 the server does not answer, 2 the settings or this computer are at
    fault, 4 the data are, 5 another version is needed, 7 a key or certificate is at fault.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_client.check import check_site, print_patients, print_verdicts

        name, path = context.ensure_object(Chosen).path()
        with human().status("checking"):
            checked = check_site(name, path, spacing_mm)
        if output is OutputFormat.JSON:
            emit(checked.data(), "", output, exit_code=checked.exit_code)
        else:
            print_verdicts(checked, Console(highlight=False))
            print_patients(checked, human())
        raise typer.Exit(checked.exit_code)


@app.command()
def prepare(
    context: typer.Context,
    spacing_mm: Spacing = 1.0,
    preprocessing: Annotated[
        Preprocessing,
        typer.Option(
            envvar="FEDGLIOMA_PREPROCESSING",
            help="standard, or as a paper has it; leave it unless the coordinator announces another",
        ),
    ] = "standard",
    bias_correction: Annotated[
        bool,
        typer.Option(
            envvar="FEDGLIOMA_BIAS_CORRECTION",
            help="divide out the coil's brightness; leave it unless the coordinator announces another",
        ),
    ] = True,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Bring the images of all patients onto one grid and one scale, once, for training.

    Works in the cache folder of the settings; the original images are never changed. What is done
    already is skipped, so that new patients can be added and a stopped run (Ctrl-C) goes on.
    Patients who cannot be used are left out and listed with the reason and what to do.

    Exit code: 0 prepared, 2 the settings are at fault, 4 no patient can be used, 130 stopped.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_client.intake import load_settings
        from fedglioma_client.prepare import prepare_site, write_report

        _, path = context.ensure_object(Chosen).path()
        config = load_settings(path)
        run = RunConfig(
            spacing_mm=spacing_mm,
            preprocessing=preprocessing,
            bias_correction=bias_correction,
            crop=144 if preprocessing == "sgpnet" else 128,
        )
        with progress("prepare", unit="cases") as shown:
            report = prepare_site(config, run, shown)
        write_report(report)
        if report.reason is None:
            emit(report.public(), report.text(), output)
        elif output is OutputFormat.JSON:
            emit(report.public() | {"error": NO_USABLE_CASE}, "", output, exit_code=report.exit_code)
        else:
            human().print(report.text(), markup=False, soft_wrap=True)
            raise DataError(report.reason)
        raise typer.Exit(report.exit_code)


@app.command()
def predict(
    context: typer.Context,
    model: Annotated[
        Path,
        typer.Option(
            envvar="FEDGLIOMA_MODEL_FOLDER", help="folder of a released model: a run's model/", metavar="DIR"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the results, one in it per patient", metavar="DIR")],
    cases: Annotated[
        list[str] | None,
        typer.Argument(help="participant_id of one patient or several", metavar="CASE..."),
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="everybody in the cohort")] = False,
    device: Annotated[
        str | None,
        typer.Option(envvar="FEDGLIOMA_DEVICE", help="cpu, cuda or cuda:1; default: that of the settings"),
    ] = None,
    flips: Annotated[
        bool | None,
        typer.Option(
            "--flips/--no-flips",
            help="average over the eight mirror images, or not; default: as the model",
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        Inference | None,
        typer.Option(
            help="read the middle of the brain in one piece, or all of it by sliding windows; auto: as the "
            "network's paper; default: as the model"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace results that are there")] = False,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Say what a released model makes of single patients: markers, WHO class, outlined tumour.

    For research only; not a medical device. Everything happens on this computer, nothing is sent. Each
    patient gets a folder with report.html to read, prediction.json, pictures and, where the model outlines
    the tumour, segmentation.nii.gz on the patient's own images. These name patients: they stay in the
    hospital. What is done already is kept, so that a stopped run (Ctrl-C) goes on.

    Exit code: 0 done, 1 the model cannot be used, 2 an option or the settings are at fault, 4 a patient who
    was named cannot be read; the others are done, 130 stopped.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_client.intake import load_settings
        from fedglioma_client.predict import Asked, make_ready, predict_all

        _, path = context.ensure_object(Chosen).path()
        asked = Asked(tuple(cases or ()), everybody, model, out, device, flips, window, overwrite)
        with progress("prepare", unit="cases") as shown:
            work = make_ready(load_settings(path), asked, shown)
        with progress("predict", unit="cases") as shown:
            outcome = predict_all(work, shown)
        emit_judged(outcome.data(), outcome.text(), output, outcome.error())


@app.command()
def keygen(
    context: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for node.key and node.pub; default: that of the settings", metavar="DIR"),
    ] = None,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Make the hospital's own key pair here, so that its private key never travels.

    Prints the public key, its fingerprint, and what to send to the coordinator. A key that is there
    already is kept and shown again.
    """
    with door(output):
        log.configure(log_level, console=human())
        from fedglioma_client.keygen import make_keys

        chosen = context.ensure_object(Chosen)
        data, text = make_keys(chosen.name(), out or chosen.folder)
        emit(data, text, output)


@app.command("linkage-key")
def linkage_key(
    file: Annotated[Path, typer.Argument(help="where to write the key", metavar="FILE")],
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Make the key by which hospitals find out whether a patient is at two of them.

    One hospital makes it for all, and hands it to the other hospitals' data managers; never to the
    coordinating centre. Each names its copy as 'linkage_key' in its settings. Nothing is overwritten.
    """
    with door(output):
        log.configure(log_level, console=human())
        from fedglioma_client.linkage import make_linkage_key

        data, text = make_linkage_key(file)
        emit(data, text, output)


@app.command()
def privacy(
    context: typer.Context,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Show what the patients have lost of their privacy, run by run, what is left, and what is not covered.

    Only reads. The ledger's chain is checked from its first line to its last, and compared with the heads
    that are kept elsewhere.

    Exit code: 0 the ledger is intact, 2 the settings are at fault, 5 the ledger is not as it was written.
    """
    with door(output), interruptible():
        log.configure(log_level, console=human())
        from fedglioma_client.budget import read_figures
        from fedglioma_client.intake import load_settings
        from fedglioma_client.privacy_screen import screen

        _, path = context.ensure_object(Chosen).path()
        figures = read_figures(load_settings(path), by_round=True)
        emit(figures.data(), screen(figures), output)


@audit.command("verify")
def verify_log(
    context: typer.Context,
    head: Annotated[
        str | None,
        typer.Option(help="a head that somebody else kept: the log must have had it", metavar="DIGEST"),
    ] = None,
    output: Format = OutputFormat.TEXT,
) -> None:
    """Check that this hospital's audit log is as it was written, and name the first line that is not.

    Exit code: 0 it is, 1 it is not, 2 there is no log yet or the settings are at fault.
    """
    with door(output):
        from fedglioma.chain import AUDIT_FILE
        from fedglioma.verification import verify
        from fedglioma_client.intake import load_settings

        _, path = context.ensure_object(Chosen).path()
        file = load_settings(path).state / AUDIT_FILE
        found = verify(file, head=head)
        emit_judged(found.data(), found.text(), output, found.error(file))
