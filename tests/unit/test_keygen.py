import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedglioma.nodekey import fingerprint, public_bytes, read_private_key, read_public_key
from fedglioma_client import cli


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedglioma.log.configure", lambda *_args, **_options: None)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("FEDGLIOMA_SITE", "FEDGLIOMA_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)


def keygen(folder: Path, *words: str, site: str = "ningxia") -> Result:
    return CliRunner().invoke(cli.app, ["--site", site, "keygen", "--out", str(folder), *words])


def test_key_pair_is_made_where_it_stays(tmp_path: Path) -> None:
    result = keygen(tmp_path / "new")
    assert result.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["node.key", "node.pub"]
    assert (tmp_path / "new" / "node.key").stat().st_mode & 0o777 == 0o600
    public = read_public_key(tmp_path / "new" / "node.pub")
    assert public_bytes(read_private_key(tmp_path / "new" / "node.key")) == public
    assert fingerprint(public) in result.stdout
    assert (tmp_path / "new" / "node.pub").read_text().strip() in result.stdout.splitlines()
    assert "send node.pub to the coordinating centre" in result.stdout


def test_private_key_is_never_printed(tmp_path: Path) -> None:
    results = [
        keygen(tmp_path),
        keygen(tmp_path, "--format", "json"),
        keygen(tmp_path, "--log-level", "DEBUG"),
    ]
    secrets = (tmp_path / "node.key").read_text().splitlines()
    assert not [line for line in secrets for result in results if line in result.output]


def test_key_that_is_there_is_kept_and_shown_again(tmp_path: Path) -> None:
    keygen(tmp_path)
    before = (tmp_path / "node.key").read_bytes()
    (tmp_path / "node.pub").unlink()  # as after a kill between the two files
    envelope = json.loads(keygen(tmp_path, "--format", "json").stdout)
    assert (tmp_path / "node.key").read_bytes() == before
    assert (tmp_path / "node.pub").exists()
    assert envelope["data"]["new"] is False
    assert envelope["data"]["fingerprint"] == fingerprint(read_public_key(tmp_path / "node.pub"))


def test_settings_folder_is_where_keys_go_by_default(tmp_path: Path) -> None:
    words = ["--site", "ningxia", "--config-dir", str(tmp_path / "kit"), "keygen"]
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    assert (tmp_path / "kit" / "node.key").exists()


def test_halves_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    keygen(tmp_path / "a")
    keygen(tmp_path / "b")
    (tmp_path / "a" / "node.pub").write_bytes((tmp_path / "b" / "node.pub").read_bytes())
    assert keygen(tmp_path / "a").exit_code == 7
    (tmp_path / "a" / "node.key").unlink()
    result = keygen(tmp_path / "a")
    assert result.exit_code == 7
    assert "is there without node.key" in result.stderr
    (tmp_path / "b" / "node.key").chmod(0o644)
    assert "chmod 600" in keygen(tmp_path / "b").stderr


@pytest.mark.parametrize("site", ["Ningxia", "../x", "ningxia.yaml"])
def test_bad_name_makes_no_key(tmp_path: Path, site: str) -> None:
    result = keygen(tmp_path / "new", site=site)
    assert result.exit_code == 2
    assert not (tmp_path / "new").exists()
