"""Options that commands share: every field of RunConfig, its words and its bounds, once; cohorts, workers.

Precedence: command line, then environment (``FEDGLIOMA_<FIELD>``), then ``--config`` file, then default.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
import typer
from pydantic.fields import FieldInfo

from fedglioma.config.run import RunConfig, run_table
from fedglioma.config.site import MOST_PROCESSES
from fedglioma.errors import ConfigError

Cohorts = Annotated[
    list[Path],
    typer.Option("--cohort", help="folder with participants.tsv and images; may be repeated", metavar="DIR"),
]
Workers = Annotated[
    int,
    typer.Option(help="processes that prepare cases; 0: one per core", min=0, max=MOST_PROCESSES),
]

PANEL = "Run settings (also in --config, or as FEDGLIOMA_<NAME>)"


def with_run_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with an option for each run setting; they reach it as the dict ``settings``."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "settings"]
    options = [_option(name, field) for name, field in RunConfig.model_fields.items()]

    def wrapped(**values: Any) -> None:
        given = {name: values.pop(name) for name in RunConfig.model_fields}
        command(settings={name: value for name, value in given.items() if value is not None}, **values)

    wrapped.__name__ = command.__name__
    wrapped.__doc__ = command.__doc__
    wrapped.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *options]} | {
        "return": None
    }
    return wrapped


def resolve_settings(
    given: Mapping[str, Any], config: Path | None, defaults: Mapping[str, Any] | None = None
) -> RunConfig:
    """Return the run's settings: ``given`` over the file over ``defaults`` over the model's own.

    Raises
    ------
    ConfigError
        The file cannot be read, or a setting is unknown or not allowed.
    """
    table: dict[str, Any] = dict(defaults or {})
    if config is not None:
        table |= run_table(config)
    try:
        return RunConfig.from_mapping(table | dict(given), "settings")
    except ConfigError:
        if config is not None:
            RunConfig.from_mapping(table, str(config))  # names the file where the file alone is wrong
        raise


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    kind = field.annotation
    choices = None
    if get_origin(kind) is Literal:
        choices = click.Choice([str(value) for value in get_args(kind)])
        kind = str
    flag = f"--{name.replace('_', '-')}"
    info = typer.Option(
        f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
        help=f"{field.description} [dim](default: {field.default})[/dim]",
        envvar=f"FEDGLIOMA_{name.upper()}",
        show_default=False,
        show_envvar=False,
        rich_help_panel=PANEL,
        click_type=choices,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, info],  # type: ignore[operator]
    )
