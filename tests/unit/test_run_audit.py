"""The commands that check an audit log: what they print, and with which code they end."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedglioma.audit import AuditLog, Event
from fedglioma.data.plan import PLAN_KEY
from fedglioma.errors import ConfigError, ProtocolError
from fedglioma_client import cli as client
from fedglioma_client.app import app as client_app
from fedglioma_server.app import make_app
from fedglioma_server.inline import run_inline
from fedglioma_server.run_audit import recompute_rounds
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.simulate import plan_file
from tests.cli_fixture import call, data_of, reason_of
from tests.federation_fixture import TINY, make_plan

HEAD_OF_NOBODY = "ab" * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with a log of three lines."""
    log = AuditLog(tmp_path / "run" / "audit.jsonl")
    for number in range(3):
        log.append(Event.RECEIVED, site="henan", round=number)
    return tmp_path / "run"


def edit(folder: Path) -> None:
    log = folder / "audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], lines[1].replace(b"henan", b"hunan"), lines[2]]))


@pytest.mark.parametrize("name", ["", "audit.jsonl"])
def test_sound_log_shows_lines_period_and_head(folder: Path, name: str) -> None:
    result = call("audit", "verify", folder / name)
    lines = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "verdict  sound",
        "lines    3",
        f"period   {lines[0]['time']} to {lines[2]['time']}",
        f"head     {lines[2]['digest']}",
    ]
    assert result.stderr == ""


def test_broken_log_ends_with_1_and_names_the_first_broken_line(folder: Path) -> None:
    edit(folder)
    result = call("audit", "verify", folder)
    assert result.exit_code == 1
    assert "verdict  line 2 was changed" in result.stdout
    assert "lines    1 before line 2" in result.stdout
    assert reason_of(result).startswith(f"{folder / 'audit.jsonl'}: line 2 was changed")


def test_log_that_is_not_there_ends_with_2(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none", tmp_path / "none.jsonl"):
        result = call("audit", "verify", place)
        assert result.exit_code == 2
        assert "no such audit log" in reason_of(result)


def test_head_kept_elsewhere_is_compared(folder: Path) -> None:
    second = json.loads((folder / "audit.jsonl").read_text().splitlines()[1])["digest"]
    result = call("audit", "verify", folder, "--head", second)
    assert result.exit_code == 0
    assert "compared the head given is that of line 2" in result.stdout
    assert call("audit", "verify", folder, "--head", HEAD_OF_NOBODY).exit_code == 1
    assert call("audit", "verify", folder, "--head", "abc").exit_code == 2


def test_line_cut_short_by_a_crash_is_told_and_is_no_fault(folder: Path) -> None:
    with (folder / "audit.jsonl").open("ab") as file:
        file.write(b'{"seq":4,')
    result = call("audit", "verify", folder)
    assert result.exit_code == 0
    assert "note     the last 9 bytes are a line that a crash cut short" in result.stdout


def test_json_has_the_same_in_the_envelope(folder: Path) -> None:
    data = data_of(call("audit", "verify", folder, "--format", "json"))
    assert (data["sound"], data["lines"], data["broken"], data["torn_bytes"]) == (True, 3, None, 0)
    edit(folder)
    result = call("audit", "verify", folder, "--format", "json")
    data = data_of(result)
    assert result.exit_code == 1
    assert (data["sound"], data["lines"], data["broken"]["line"]) == (False, 1, 2)
    assert data["error"].endswith(f"audit.jsonl: line 2 {data['broken']['what']}")
    missing = call("audit", "verify", folder / "none", "--format", "json")
    assert missing.exit_code == 2
    assert data_of(missing)["kind"] == "ConfigError"


def hospital(root: Path, *words: str) -> Result:
    settings = root / "site_config"
    settings.mkdir(exist_ok=True)
    text = f"site: henan\ndata: ../data\nstate: {root / 'run'}\n"
    (settings / "henan.yaml").write_text(text, encoding="utf-8")
    start = ["--site", "henan", "--config-dir", str(settings)]
    return CliRunner().invoke(client.app, [*start, "audit", "verify", *words])


def test_hospital_checks_its_own_log(folder: Path) -> None:
    result = hospital(folder.parent)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "verdict  sound")
    edit(folder)
    result = hospital(folder.parent)
    assert result.exit_code == 1
    assert "line 2 was changed" in reason_of(result)
    result = hospital(folder.parent, "--format", "json")
    assert (result.exit_code, data_of(result)["broken"]["line"]) == (1, 2)


def test_hospital_without_a_log_yet_ends_with_2(tmp_path: Path) -> None:
    result = hospital(tmp_path)
    assert result.exit_code == 2
    assert "no such audit log" in reason_of(result)
    assert not (tmp_path / "run").exists()


def test_weights_are_computed_again_from_kept_updates_and_a_changed_one_is_named(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TINY.model_copy(update={"keep_updates": True}))
    folder = RunFolder(plan.run_folder)
    run_inline(make_app(), client_app, sites=len(plan.sites), run_config={PLAN_KEY: str(plan_file(folder))})
    data, text = recompute_rounds(folder.path, None)
    assert data["weights"] == {
        str(line.round): line.weights_digest for line in folder.rounds() if line.round > 0
    }
    assert text.count("as recorded") == TINY.rounds
    update = next((folder.path / "updates" / "round-0001").glob("*.safetensors"))
    content = bytearray(update.read_bytes())
    content[-1] ^= 1
    update.write_bytes(content)
    with pytest.raises(ProtocolError, match=f"{update.name}: is not the update on record"):
        recompute_rounds(folder.path, 1)
    with pytest.raises(ConfigError, match="no such run folder"):
        recompute_rounds(tmp_path / "nowhere", None)
