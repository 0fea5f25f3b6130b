"""Run settings as command-line options, and which of several sources counts."""

from pathlib import Path
from typing import Any

import click
import pytest
import typer
from pydantic_core import PydanticUndefined

from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma_server import cli
from fedglioma_server.options import resolve_settings, with_run_settings


def options() -> dict[str, click.Parameter]:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    return {parameter.name: parameter for parameter in group.commands["simulate"].params}


def parsed(*words: str) -> dict[str, Any]:
    """Return what reaches a command whose only parameters are the run settings."""
    app, found = typer.Typer(), {}

    @app.command()
    @with_run_settings
    def command(settings: dict[str, Any], own: str = "mine") -> None:
        """Do something."""
        found.update(settings, own=own)

    typer.main.get_command(app).main(list(words), standalone_mode=False)
    return found


def settings_file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", RunConfig.model_fields)
def test_every_run_setting_is_an_option_with_help_and_a_variable(name: str) -> None:
    option, field = options()[name], RunConfig.model_fields[name]
    assert f"--{name.replace('_', '-')}" in option.opts
    assert option.envvar == f"FEDGLIOMA_{name.upper()}"
    assert field.default is not PydanticUndefined
    assert f"{field.description} [dim](default: {field.default})[/dim]" == option.help
    assert field.description


def test_no_option_stands_for_two_things() -> None:
    group = typer.main.get_command(cli.app)
    for command in group.commands.values():
        flags = [
            flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("-")
        ]
        assert len(flags) == len(set(flags)), command.name


def test_settings_that_were_not_given_are_not_there() -> None:
    assert parsed() == {"own": "mine"}
    assert parsed("--rounds", "3", "--own", "yours") == {"rounds": 3, "own": "yours"}


def test_values_arrive_in_their_types() -> None:
    found = parsed("--lr", "1e-3", "--rounds", "3", "--no-flips", "--intensity", "--strategy", "fedprox")
    assert found == {
        "lr": 1e-3,
        "rounds": 3,
        "flips": False,
        "intensity": True,
        "strategy": "fedprox",
        "own": "mine",
    }


def test_variable_counts_unless_the_option_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGLIOMA_ROUNDS", "8")
    monkeypatch.setenv("FEDGLIOMA_FLIPS", "0")
    assert parsed() == {"rounds": 8, "flips": False, "own": "mine"}
    assert parsed("--rounds", "9")["rounds"] == 9


def test_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGLIOMA_ROUNDS", "")
    assert parsed() == {"own": "mine"}


def test_decorated_command_keeps_its_name_and_words() -> None:
    @with_run_settings
    def train(settings: dict[str, Any]) -> None:
        """Train something."""

    assert (train.__name__, train.__doc__) == ("train", "Train something.")


def test_given_counts_over_the_file_over_the_commands_defaults_over_the_models(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "rounds: 7\nseed: 5\n")
    found = resolve_settings({"rounds": 9}, file, {"rounds": 1, "seed": 1, "width": 2})
    assert found == RunConfig(rounds=9, seed=5, width=2)
    assert resolve_settings({}, None) == RunConfig()


@pytest.mark.parametrize(
    "text",
    [
        "batch-size: 4\n",
        "batch_size: 4\n",
        "run:\n  batch-size: 4\n",
        "run: {batch_size: 4}\naddress: here\n",
    ],
)
def test_file_may_spell_names_either_way_and_keep_them_in_a_table(text: str, tmp_path: Path) -> None:
    assert resolve_settings({}, settings_file(tmp_path, text)).batch_size == 4


@pytest.mark.parametrize("text", ["", "# nothing\n", "run:\n", "---\n"])
def test_empty_file_changes_nothing(text: str, tmp_path: Path) -> None:
    assert resolve_settings({}, settings_file(tmp_path, text)) == RunConfig()


def test_mistake_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "lr: -1\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: lr: -1 is not allowed"):
        resolve_settings({"rounds": 3}, file)


def test_mistake_of_the_command_line_is_not_the_files(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "rounds: 3\n")
    with pytest.raises(ConfigError, match=r"^settings: lr: -1 is not allowed"):
        resolve_settings({"lr": -1}, file)


def test_file_and_command_line_that_contradict_only_together_are_told_so(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "selection: 0.6\n")
    assert resolve_settings({"report": 0.1}, file).selection == 0.6
    with pytest.raises(ConfigError, match=r"^settings: selection \+ report: at least 5 %"):
        resolve_settings({"report": 0.4}, file)


def test_bad_value_that_the_command_line_overrides_does_not_matter(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "lr: -1\n")
    assert resolve_settings({"lr": 0.5}, file).lr == 0.5


def test_unknown_setting_is_refused_with_a_proposal(tmp_path: Path) -> None:
    file = settings_file(tmp_path, "run:\n  round: 3\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: round: unknown setting, did you mean rounds\?"):
        resolve_settings({}, file)


@pytest.mark.parametrize(
    ("text", "kind"), [("run: 5\n", "int"), ("run: fast\n", "str"), ("run: [rounds]\n", "list")]
)
def test_run_table_that_is_none_is_refused(text: str, kind: str, tmp_path: Path) -> None:
    file = settings_file(tmp_path, text)
    with pytest.raises(ConfigError, match=f"run: holds 'key: value' lines, this one holds {kind}"):
        resolve_settings({}, file)
