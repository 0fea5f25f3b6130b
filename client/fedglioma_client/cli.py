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
from fedglioma.config.site import SITE_NAME
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
from fedglioma.errors import ConfigError, DataError, FedGliomaError

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A hospital's side of a fedglioma federation. Research use only, not a medical device.\n\n"
    "Write [bold]site_config/NAME.yaml[/] first (copy example.yaml, which explains every line), then run "
    "[bold]fedglioma-client --site NAME check[/] and, when nothing fails, "
    "[bold]fedglioma-client --site NAME prepare[/]. Neither sends anything anywhere.",
)

Spacing = Annotated[
    float,
    typer.Option(
        envvar="FEDGLIOMA_SPACING_MM",
        help="voxel edge of the prepared images in mm; leave it unless the coordinator announces another",
        min=0.5,
        max=8,
    ),
]

NOT_NETWORKED = (
    "joining a federation over the network is not part of this version; "
    "'fedglioma-server simulate' runs the same server and client apps on one machine"
)
NO_USABLE_CASE = "no case is usable; patients and reasons are in the list"


@dataclass(frozen=True)
class Chosen:
    """Which hospital was asked for."""

    site: str | None
    folder: Path

    def path(self) -> tuple[str, Path]:
        """Return the site's name and where its settings should lie.

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
        path = self.folder / f"{self.site}.yaml"
        if not path.is_file():
            there = ", ".join(sorted(other.stem for other in self.folder.glob("*.yaml"))) or "none"
            raise ConfigError(f"{path}: no such settings file; sites in {self.folder}: {there}")
        return self.site, path


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
    with door(OutputFormat.TEXT):
        raise FedGliomaError(NOT_NETWORKED)


@app.command()
def check(
    context: typer.Context,
    spacing_mm: Spacing = 1.0,
    output: Format = OutputFormat.TEXT,
    log_level: LogLevel = "INFO",
) -> None:
    """Look at settings, data, disk, memory and GPU before anything is started. Changes nothing.

    One line each: ok, warning (works, but have a look) or failed (must be mended), with what to do.
    Patients with a problem are named below the lines, on this terminal only.

    Exit code: 0 nothing failed, 2 the settings or this computer are at fault, 4 the data are.
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
        with progress("prepare", unit="cases") as shown:
            report = prepare_site(config, spacing_mm, shown)
        write_report(report)
        if report.reason is None:
            emit(report.public(), report.text(), output)
        elif output is OutputFormat.JSON:
            emit(report.public() | {"error": NO_USABLE_CASE}, "", output, exit_code=report.exit_code)
        else:
            human().print(report.text(), markup=False, soft_wrap=True)
            raise DataError(report.reason)
        raise typer.Exit(report.exit_code)
