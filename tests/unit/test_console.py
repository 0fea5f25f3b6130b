"""What commands say, where they say it, and with which number they end."""

import errno
import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from rich.console import Console
from rich.logging import RichHandler

from fedglioma import log
from fedglioma.console import (
    OutputFormat,
    door,
    emit,
    fail,
    human,
    interruptible,
    prepare_environment,
    progress,
    silent,
)
from fedglioma.errors import (
    AggregationError,
    ConfigError,
    DataError,
    FedGliomaError,
    ModalityMissing,
    PolicyError,
    ProtocolError,
    QuorumError,
)

Captured = pytest.CaptureFixture[str]
TEXT, JSON = OutputFormat.TEXT, OutputFormat.JSON


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A narrow terminal without colours, known to this test's console alone."""
    human.cache_clear()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    yield
    human.cache_clear()


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    before = (list(root.handlers), root.level, flower.level, flower.propagate)
    yield root
    root.handlers, root.level = before[0], before[1]
    flower.level, flower.propagate = before[2], before[3]


def ended(error: BaseException, output: OutputFormat = TEXT) -> int:
    """Return the exit code of a command that raises."""
    with pytest.raises(SystemExit) as raised, door(output):
        raise error
    assert isinstance(raised.value.code, int)
    return raised.value.code


def test_text_goes_to_stdout_with_one_line_end(capsys: Captured) -> None:
    emit({"a": 1}, "two\nlines\n\n", TEXT)
    assert capsys.readouterr().out == "two\nlines\n"
    emit({"a": 1}, "", TEXT)
    assert capsys.readouterr().out == ""


def test_json_is_one_envelope(capsys: Captured) -> None:
    emit({"place": Path("x"), "umlaut": "Müller"}, "not shown", JSON)
    told = capsys.readouterr()
    assert json.loads(told.out) == {
        "schema_version": 1,
        "status": "ok",
        "exit_code": 0,
        "data": {"place": "x", "umlaut": "Müller"},
    }
    assert told.err == ""


def test_nan_is_never_printed_as_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit({"loss": float("nan")}, "", JSON)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (FedGliomaError, 1),
        (ConfigError, 2),
        (QuorumError, 3),
        (DataError, 4),
        (ModalityMissing, 4),
        (PolicyError, 5),
        (ProtocolError, 1),
        (AggregationError, 1),
    ],
)
def test_each_error_has_its_number(kind: type[FedGliomaError], code: int, capsys: Captured) -> None:
    assert ended(kind("what, where, how to mend it")) == code
    told = capsys.readouterr()
    assert told.err == "error: what, where, how to mend it\n"
    assert told.out == ""


def test_error_stays_one_line_however_narrow_the_terminal(capsys: Captured) -> None:
    ended(ConfigError("word " * 40 + "end"))
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["'fedglioma[ray]' [red]not a colour[/]", "[/]", "a \\[b] :smile: 3.5 [1, 2]"]
)
def test_error_is_printed_as_it_is_and_not_as_markup(text: str, capsys: Captured) -> None:
    ended(ConfigError(text))
    assert capsys.readouterr().err.strip().removeprefix("error: ") == text


def test_error_is_an_envelope_too_where_json_is_asked_for(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as raised:
        fail(DataError("no case"), JSON)
    told = capsys.readouterr()
    assert raised.value.code == 4
    assert json.loads(told.out) == {
        "schema_version": 1,
        "status": "error",
        "exit_code": 4,
        "data": {"error": "no case", "kind": "DataError"},
    }
    assert told.err == "error: no case\n"


def test_interruption_ends_with_130_and_says_how_to_go_on(capsys: Captured) -> None:
    assert ended(KeyboardInterrupt()) == 130
    told = capsys.readouterr()
    assert "the same command" in told.err
    assert told.out == ""
    assert ended(KeyboardInterrupt(), JSON) == 130
    assert json.loads(capsys.readouterr().out)["exit_code"] == 130


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device: check space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            "error: Permission denied (/a/b): check",
        ),
        (OSError("odd"), "error: odd: check space"),
        (MemoryError(), "error: out of memory"),
    ],
)
def test_what_the_operator_can_mend_is_told_in_words(error: Exception, said: str, capsys: Captured) -> None:
    assert ended(error) == 1
    assert capsys.readouterr().err.startswith(said)


def test_defect_is_named_as_one_and_its_traceback_is_kept_for_debugging(
    capsys: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "fedglioma.console"):
        assert ended(ZeroDivisionError("by zero\nsecond line")) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: a defect in fedglioma: ZeroDivisionError: by zero (--log-level DEBUG")
    assert len(told.splitlines()) == 1
    assert caplog.records[-1].exc_info is not None
    assert caplog.records[-1].levelno == logging.DEBUG


@pytest.mark.parametrize(
    "ending", [click.exceptions.Exit(4), click.UsageError("no"), click.Abort(), SystemExit(7)]
)
def test_endings_of_the_command_line_itself_pass_the_door(ending: BaseException, capsys: Captured) -> None:
    with pytest.raises(type(ending)), door(TEXT):
        raise ending
    assert capsys.readouterr().err == ""


def test_command_that_ends_well_passes_the_door(capsys: Captured) -> None:
    with door(JSON):
        pass
    assert capsys.readouterr() == ("", "")


def test_sigterm_ends_a_command_as_ctrl_c_does_and_only_while_it_runs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_without_a_terminal_is_a_line_now_and_then(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("fedglioma.console.time.monotonic", lambda: clock[-1])
    with progress("prepare", unit="cases") as shown:
        for now, done in ((100.0, 0), (101.0, 1), (104.9, 2), (106.0, 3), (107.0, 9), (120.0, 9)):
            clock.append(now)
            shown(done, 9)
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "prepare: 0/9 cases",
        "prepare: 3/9 cases, about 12 s left",
        "prepare: 9/9 cases",
    ]
    assert told.out == ""


def test_progress_on_a_terminal_is_a_bar_on_stderr(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(
        "fedglioma.console.human", lambda: Console(stderr=True, force_terminal=True, width=100, no_color=True)
    )
    with progress("train", unit="replies") as shown:
        shown(3, 4)
    told = capsys.readouterr()
    assert "3/4" in told.err
    assert told.out == ""


def test_silent_progress_says_nothing(capsys: Captured) -> None:
    silent(1, 2)
    assert capsys.readouterr() == ("", "")


def test_one_console_writes_to_whatever_stderr_is_now(capsys: Captured) -> None:
    human().print("first")
    assert capsys.readouterr().err == "first\n"
    human().print("second :smile:")
    assert capsys.readouterr().err == "second :smile:\n"
    assert human() is human()


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert human().no_color
    assert human().stderr


def test_flowers_telemetry_is_off_unless_somebody_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK", "OMP_WAIT_POLICY", "FLWR_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")
    prepare_environment()
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_log_goes_to_stderr_one_event_a_line(root_logger: logging.Logger, capsys: Captured) -> None:
    log.configure("INFO")
    logging.getLogger("fedglioma.x").info("round %d: %s [not markup]", 7, "done")
    logging.getLogger("fedglioma.x").debug("ours alone")
    logging.getLogger("flwr").info("chatter")
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.rstrip().endswith("INFO    round 7: done [not markup]")


def test_log_is_configured_anew_and_not_twice(root_logger: logging.Logger) -> None:
    log.configure("INFO")
    log.configure("DEBUG")
    assert len(root_logger.handlers) == 1
    assert root_logger.level == logging.DEBUG


def test_log_on_a_terminal_is_rich(root_logger: logging.Logger) -> None:
    log.configure("INFO", console=Console(stderr=True, force_terminal=True))
    assert isinstance(root_logger.handlers[0], RichHandler)
