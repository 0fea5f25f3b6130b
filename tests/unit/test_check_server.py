"""The lines of ``check`` about the way to the server: state folder, key, certificate, greeting."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedglioma.config.site import SiteConfig
from fedglioma.nodekey import create_private_key
from fedglioma_client import check_server
from fedglioma_client.check_server import check_way
from fedglioma_client.reach import Door, Knock
from fedglioma_client.verdict import Status, Verdict
from fedglioma_server.authority import certificate_pem, create_authority, new_key, read_certificate


def authority(days: float) -> bytes:
    """Return a certificate that ends in so many days."""
    return certificate_pem(
        create_authority(new_key(), "test", days=40, now=datetime.now(UTC) + timedelta(days=days - 40))
    )


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    create_private_key(tmp_path / "node.key")
    (tmp_path / "ca.pem").write_bytes(authority(39.5))
    return tmp_path


def settings(kit: Path, **changes: Any) -> SiteConfig:
    table = {"site": "henan", "data": kit, "server": "fed.example.org:8443", "state": kit / "state"}
    return SiteConfig(**(table | {"ca": kit / "ca.pem", "key": kit / "node.key"} | changes))


def verdicts(config: SiteConfig) -> dict[str, Verdict]:
    return {verdict.subject: verdict for verdict in check_way(config)}


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the greeting finds; by default an open door."""
    scene: dict[str, Any] = {
        "found": Knock(Door.OPEN, "fed.example.org:8443 knows this site", told={"run": "r"})
    }
    monkeypatch.setattr(check_server, "knock", lambda _config: scene["found"])
    return scene


def test_settings_without_a_server_are_well(kit):
    found = verdicts(settings(kit, server=None))
    assert {subject: verdict.status for subject, verdict in found.items()} == {"server": Status.OK}


def test_way_that_is_open_is_well_and_nothing_is_made(kit, door):
    before = sorted(kit.iterdir())
    found = verdicts(settings(kit))
    assert list(found) == ["state", "key", "ca", "server", "clock"]
    assert {verdict.status for verdict in found.values()} == {Status.OK}
    assert found["server"].detail == "fed.example.org:8443 knows this site (run r)"
    assert sorted(kit.iterdir()) == before


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Door.AWAY, 1),
        (Door.VERSION, 5),
        (Door.CLOCK, 7),
        (Door.IDENTITY, 7),
        (Door.REVOKED, 7),
    ],
)
def test_door_that_is_shut_fails_with_its_code_and_words(found, code, kit, door):
    door["found"] = Knock(found, "so it is", "do this")
    told = verdicts(settings(kit))["clock" if found is Door.CLOCK else "server"]
    assert told == Verdict(told.subject, Status.FAILED, "so it is", "do this", code)


def test_every_door_is_open_or_has_a_code():
    assert set(check_server._CODES) == set(Door) - {Door.OPEN}


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"], ids=["absent", "empty", "damaged"])
def test_certificate_that_cannot_be_read_fails_with_7_and_nobody_is_greeted(content, kit, door):
    (kit / "ca.pem").unlink()
    if content is not None:
        (kit / "ca.pem").write_bytes(content)
    found = verdicts(settings(kit))
    assert (found["ca"].exit_code, found["ca"].remedy) == (7, "take ca.pem from the kit again")
    assert "server" not in found


@pytest.mark.parametrize("name", ["ca", "key"])
def test_settings_that_name_no_certificate_or_key_fail_with_2(name, kit, door):
    found = verdicts(settings(kit, **{name: None}))
    assert (found[name].status, found[name].exit_code) == (Status.FAILED, 2)
    assert "server" not in found


@pytest.mark.parametrize(
    ("days", "status", "code"),
    [(-1.5, Status.FAILED, 7), (10.5, Status.WARNING, 0), (39.5, Status.OK, 0)],
)
def test_certificate_that_ends_is_told_in_time(days, status, code, kit, door):
    (kit / "ca.pem").write_bytes(authority(days))
    told = verdicts(settings(kit))["ca"]
    assert (told.status, told.exit_code) == (status, code)
    assert f"ends {read_certificate(kit / 'ca.pem').not_valid_after_utc:%Y-%m-%d}" in told.detail


def test_key_that_others_can_read_fails_with_7(kit, door):
    (kit / "node.key").chmod(0o644)
    assert verdicts(settings(kit))["key"].exit_code == 7


def test_state_that_is_a_file_fails_with_2_and_the_other_lines_stay(kit, door):
    (kit / "state").write_text("no folder")
    found = verdicts(settings(kit, state=kit / "state" / "henan"))
    assert (found["state"].status, found["state"].exit_code) == (Status.FAILED, 2)
    assert found["key"].status is Status.OK


def test_state_below_a_folder_that_is_closed_fails_with_2(kit, door, monkeypatch):
    def closed(path: Path, **_: object) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", closed)  # as root, the tests may go in everywhere
    told = verdicts(settings(kit))["state"]
    assert (told.status, told.exit_code) == (Status.FAILED, 2)
    assert "cannot be written (Permission denied)" in told.detail


def test_proxy_is_named_without_its_password(kit, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://it:secret@localhost:1")
    told = verdicts(settings(kit, server="127.0.0.1:1"))["server"]
    assert told.exit_code == 1
    assert "through the proxy localhost" in told.detail
    assert "secret" not in f"{told.detail} {told.remedy}"


def test_proxy_that_is_no_url_is_told_without_its_password(kit, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://it:qq/ssw0rd@localhost:1")
    told = verdicts(settings(kit))["server"]
    assert told.exit_code == 2
    assert "HTTPS_PROXY" in told.detail
    assert "qq" not in told.detail
