import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fedglioma.config.server import ServerConfig, load_server_config
from fedglioma.config.site import SiteConfig, load_site_config
from fedglioma.errors import ConfigError
from fedglioma.nodekey import create_private_key, fingerprint, public_bytes, read_private_key, read_public_key
from fedglioma_client.cli import app as client_cli
from fedglioma_server import authority as ca
from fedglioma_server.kits import Terms, render, write_archive, write_kit

NOW = ca.today()
TERMS = Terms(
    authority=ca.create_authority(ca.new_key(), "Glioma consortium", days=3650, now=NOW),
    server="fed.example.org:8443",
    contact="Dr. Wang, +86 371 1234",
    now=NOW,
)
FILES = ["README.md", "SHA256SUMS", "ca.pem", "ningxia.yaml", "node.key", "node.pub"]


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "ningxia"
    write_kit(folder, "ningxia", TERMS, None)
    return folder


def sums_hold(folder: Path) -> bool:
    words = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    return subprocess.run(words, cwd=folder, capture_output=True).returncode == 0  # noqa: S603 - our own words


def test_kit_holds_key_certificate_settings_sums_and_page(kit: Path) -> None:
    assert sorted(path.name for path in kit.iterdir()) == FILES
    assert kit.stat().st_mode & 0o777 == 0o700
    assert (kit / "node.key").stat().st_mode & 0o777 == 0o600
    assert public_bytes(read_private_key(kit / "node.key")) == read_public_key(kit / "node.pub")
    assert ca.read_certificate(kit / "ca.pem") == TERMS.authority


def test_kit_of_a_site_with_its_own_key_has_no_private_key(tmp_path: Path) -> None:
    public = create_private_key(tmp_path / "node.key")
    write_kit(tmp_path / "ningxia", "ningxia", TERMS, public)
    assert sorted(path.name for path in (tmp_path / "ningxia").iterdir()) == [
        name for name in FILES if name != "node.key"
    ]
    assert read_public_key(tmp_path / "ningxia" / "node.pub") == public
    assert "not in this kit" in (tmp_path / "ningxia" / "README.md").read_text()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_sums_hold_until_a_file_changes(kit: Path) -> None:
    assert sums_hold(kit)
    for name in set(FILES) - {"SHA256SUMS"}:
        content = (kit / name).read_bytes()
        (kit / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert not sums_hold(kit)
        (kit / name).write_bytes(content)
    assert sums_hold(kit)


def test_settings_of_a_kit_load_and_lead_to_its_own_files(kit: Path) -> None:
    config = load_site_config(kit / "ningxia.yaml")
    assert (config.site, config.server) == ("ningxia", "fed.example.org:8443")
    assert (config.ca, config.key, config.state) == (kit / "ca.pem", kit / "node.key", kit / "state")
    assert not config.data.exists()
    assert "EDIT" in str(config.data)


def test_settings_of_a_kit_change_no_default_but_the_places(kit: Path) -> None:
    config = SiteConfig.model_validate(yaml.safe_load((kit / "ningxia.yaml").read_text()))
    changed = {
        name
        for name in config.model_fields_set
        if getattr(config, name) != SiteConfig.model_fields[name].default
    }
    assert changed == {"site", "data", "server", "ca", "key"}


def test_address_with_colons_survives_the_settings(tmp_path: Path) -> None:
    write_kit(tmp_path / "ningxia", "ningxia", replace(TERMS, server="[2001:db8::1]:8443"), None)
    assert load_site_config(tmp_path / "ningxia" / "ningxia.yaml").server == "[2001:db8::1]:8443"
    assert "`[2001:db8::1]`, port 8443" in (tmp_path / "ningxia" / "README.md").read_text()


@pytest.mark.parametrize("site", ["no", "on", "1", "007", "1e3", "null", "0x1f", "a-b_c"])
def test_every_legal_name_survives_the_settings(tmp_path: Path, site: str) -> None:
    write_kit(tmp_path / site, site, TERMS, None)
    assert load_site_config(tmp_path / site / f"{site}.yaml").site == site


def test_page_says_what_it_needs_to(kit: Path) -> None:
    page = (kit / "README.md").read_text()
    for words in (
        ca.certificate_fingerprint(TERMS.authority),
        fingerprint(read_public_key(kit / "node.pub")),
        f"{TERMS.authority.not_valid_after_utc:%Y-%m-%d}",
        "TCP to `fed.example.org`, port 8443",
        "HTTPS_PROXY",
        "Dr. Wang, +86 371 1234",
        "sha256sum -c SHA256SUMS",
        "Research use only",
    ):
        assert words in page
    assert len(page.splitlines()) < 110  # two printed pages
    assert "{{" not in page
    assert not re.search(r"\n{3}", page)


@pytest.mark.parametrize("own", [False, True])
def test_commands_on_the_page_exist(tmp_path: Path, own: bool) -> None:
    public = create_private_key(tmp_path / "node.key") if own else None
    write_kit(tmp_path / "ningxia", "ningxia", TERMS, public)
    command: Any = typer.main.get_command(client_cli)
    named = re.findall(
        r"fedglioma-client --site ningxia([^\n`]*)", (tmp_path / "ningxia" / "README.md").read_text()
    )
    assert len(named) >= 4
    words = {word for line in named for word in line.split() if re.fullmatch(r"(--)?[a-z-]{4,}", word)}
    options = {
        option for one in (command, *command.commands.values()) for p in one.params for option in p.opts
    }
    assert words <= options | set(command.commands)
    assert {"check", "prepare", "--config-dir"} <= words


def test_no_secret_is_on_the_page_or_in_the_settings(kit: Path) -> None:
    secret = "".join((kit / "node.key").read_text().splitlines()[1:-1])
    for name in set(FILES) - {"node.key"}:
        text = (kit / name).read_text().replace("\n", "")
        assert "PRIVATE KEY" not in text
        assert secret[-64:] not in text


def test_kit_is_never_overwritten(kit: Path) -> None:
    before = (kit / "node.key").read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        write_kit(kit, "ningxia", TERMS, None)
    assert (kit / "node.key").read_bytes() == before
    assert [path.name for path in kit.parent.iterdir()] == ["ningxia"]


def test_archive_unpacks_to_the_kit_and_names_nobody(kit: Path, tmp_path: Path) -> None:
    archive = tmp_path / "ningxia.tar.gz"
    write_archive(kit, archive)
    assert archive.stat().st_mode & 0o777 == 0o600
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        tar.extractall(tmp_path / "there", filter="data")
    assert [member.name for member in members] == ["ningxia", *(f"ningxia/{name}" for name in FILES)]
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert {m.name: m.mode for m in members}["ningxia/node.key"] == 0o600
    for name in FILES:
        assert (tmp_path / "there" / "ningxia" / name).read_bytes() == (kit / name).read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        write_archive(kit, archive)


def test_server_settings_load_and_explain_every_key(tmp_path: Path) -> None:
    words = {"consortium": "Glioma", "port": 9443, "expected": ["no", "ningxia"], "quorum": 2}
    path = tmp_path / "server.yaml"
    path.write_bytes(render("server.yaml.j2", words))
    config = load_server_config(path)
    assert (config.port, config.expected, config.run.quorum) == (9443, ("no", "ningxia"), 2)
    assert (config.certificate, config.key) == (
        tmp_path / "server" / "server.pem",
        tmp_path / "server" / "server.key",
    )
    assert (config.ca, config.sites) == (tmp_path / "ca" / "ca.pem", tmp_path / "sites")
    assert set(ServerConfig.model_fields) == set(yaml.safe_load(path.read_text()))
    lines = path.read_text().splitlines()
    keys = [n for n, line in enumerate(lines) if re.match(r"[a-z_]+:", line)]
    near = [any(line.startswith("#") for line in lines[max(0, n - 4) : n]) for n in keys]
    assert all(near)


def test_server_settings_change_no_default_but_places_and_sites(tmp_path: Path) -> None:
    words = {"consortium": "Glioma", "port": 8443, "expected": [], "quorum": 1}
    path = tmp_path / "server.yaml"
    path.write_bytes(render("server.yaml.j2", words))
    config = ServerConfig.model_validate(yaml.safe_load(path.read_text()))
    made = ServerConfig(certificate=config.certificate, key=config.key, ca=config.ca)
    assert config == made


def test_certificate_of_a_kit_is_the_one_that_vouches_for_the_server(tmp_path: Path) -> None:
    key = ca.new_key()
    authority = ca.create_authority(key, "Glioma", days=10, now=NOW)
    server = ca.issue_server(authority, key, ca.new_key(), ("fed.example.org",), days=1, now=NOW)
    write_kit(tmp_path / "henan", "henan", replace(TERMS, authority=authority), None)
    ca.check_issued(server, ca.read_certificate(tmp_path / "henan" / "ca.pem"), "server.pem")
    assert server.not_valid_after_utc - NOW == timedelta(days=1)
