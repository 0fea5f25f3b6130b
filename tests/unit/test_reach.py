"""A knock at the server's door: what a site finds there, against servers of the test's own over real TLS."""

import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fedglioma.bundle import build_bundle
from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError, IdentityError
from fedglioma.nodekey import create_private_key, public_bytes, read_private_key
from fedglioma_client.reach import AHEAD_S, BEHIND_S, RETRIED, Door, Knock, knock
from fedglioma_server.authority import (
    certificate_pem,
    create_authority,
    issue_server,
    key_pem,
    new_key,
)
from fedglioma_server.gate import Gate, Standing
from fedglioma_server.link import Address, serving

NOW = datetime.now(UTC)


class Book:
    """A list with one key on it."""

    def __init__(self, key: bytes, standing: Standing = "member", site: str = "henan") -> None:
        self.key, self.found = key, (standing, site)

    def standing(self, public_key: bytes) -> tuple[Standing, str]:
        return self.found if public_key == self.key else ("unknown", "")


class Ground:
    """An authority, a certificate and a site's key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority_key, key = new_key(), new_key()
        authority = create_authority(authority_key, "test", days=2, now=NOW)
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        issued = issue_server(authority, authority_key, key, ["127.0.0.1"], days=1, now=NOW)
        (folder / "ca.pem").write_bytes(certificate_pem(authority))
        self.certificate.write_bytes(certificate_pem(issued))
        self.key.write_bytes(key_pem(key))
        self.public = create_private_key(folder / "node.key")

    def config(self, port: int, **changes: Any) -> SiteConfig:
        table = {
            **{"site": "henan", "data": self.folder, "server": f"127.0.0.1:{port}"},
            **{"ca": self.folder / "ca.pem", "key": self.folder / "node.key"},
        }
        return SiteConfig(**(table | changes))

    @contextmanager
    def serving(self, app: Callable[[Any, Any, Any], Awaitable[None]]) -> Iterator[int]:
        with serving(app, Address("127.0.0.1", 0, self.certificate, self.key)) as port:
            yield port

    def gate(self, book: Book | None = None, **told: object) -> Gate:
        said = {"run": "seven", "version": "0.1.0", "bundle": build_bundle().digest} | told

        async def nobody(*_: object) -> None:
            raise AssertionError("a hello went further than the gate")

        return Gate(nobody, book or Book(self.public), lambda _site: said, largest_object=1)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, and patience with a busy computer."""
    monkeypatch.setattr("fedglioma_client.reach.TIMEOUT_S", 60.0)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def knocked(ground: Ground, gate: Gate, **changes: Any) -> Knock:
    with ground.serving(gate) as port:
        return knock(ground.config(port, **changes))


def test_member_finds_the_door_open_and_learns_about_the_run(ground):
    found = knocked(ground, ground.gate())
    assert found.door is Door.OPEN
    assert found.told["run"] == "seven"


def test_site_whose_key_nobody_knows_is_told_its_fingerprint(ground):
    found = knocked(ground, ground.gate(Book(b"another")))
    assert found.door is Door.IDENTITY
    assert "does not know this site's key (SHA256:" in found.detail


def test_revoked_site_is_told_so(ground):
    found = knocked(ground, ground.gate(Book(ground.public, "revoked", "henan-1a2b3c4d")))
    assert found.door is Door.REVOKED


def test_site_that_uses_anothers_key_is_told_so(ground):
    found = knocked(ground, ground.gate(Book(ground.public, site="ningxia")))
    assert found.door is Door.IDENTITY
    assert "knows this key as 'ningxia', the settings say 'henan'" in found.detail


def test_server_with_another_bundle_is_another_version(ground):
    found = knocked(ground, ground.gate(bundle="0" * 64, version="9.9.9"))
    assert found.door is Door.VERSION
    assert "fedglioma 9.9.9 with another bundle" in found.detail


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set this computer's clock wrong, for the knock alone."""

    def wrong_by(seconds: float) -> None:
        class Shifted(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.now(tz) + timedelta(seconds=seconds)

        monkeypatch.setattr("fedglioma_client.reach.datetime", Shifted)

    return wrong_by


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (AHEAD_S + 40, "ahead of the server's"),
        (-BEHIND_S - 40, "behind the server's"),
        (3600, "ahead of the server's"),
        (-86400, "behind the server's"),
    ],
)
def test_clock_that_is_wrong_is_told_with_its_seconds(seconds, words, ground, clock):
    clock(seconds)
    found = knocked(ground, ground.gate())
    assert found.door is Door.CLOCK
    assert words in found.detail
    assert "timedatectl" in found.remedy
    (told,) = (int(word) for word in found.detail.split() if word.isdigit())
    assert abs(told - abs(seconds)) <= 30  # half of what a busy computer may need for the answer


@pytest.mark.parametrize("seconds", [0, -BEHIND_S + 40])
def test_clock_within_the_allowance_opens_the_door(seconds, ground, clock):
    clock(seconds)
    assert knocked(ground, ground.gate()).door is Door.OPEN


def answering(body: bytes, *headers: tuple[bytes, bytes]) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Return a server of another kind."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        said = [(b"content-length", str(len(body)).encode()), *headers]
        await send({"type": "http.response.start", "status": 200, "headers": said})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize("date", [b"yesterday", b"Sat, 21 Nov 2026 09:00:00 -0000", b""])
def test_date_that_cannot_be_read_is_no_reason_to_fail(date, ground):
    with ground.serving(answering(b"{}", (b"date", date))) as port:
        assert knock(ground.config(port)).door is Door.IDENTITY


@pytest.mark.parametrize("body", [b"", b"[]", b"hello", json.dumps({"site": 5}).encode()])
def test_answer_of_another_kind_of_server_opens_no_door(body, ground):
    with ground.serving(answering(body)) as port:
        assert knock(ground.config(port)).door is Door.IDENTITY


def test_server_that_is_not_there_is_away(ground):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = knock(ground.config(probe.getsockname()[1]))
    assert found.door is Door.AWAY
    assert found.door in RETRIED
    assert "does not answer" in found.detail


def test_server_that_says_nothing_is_away(ground, monkeypatch):
    monkeypatch.setattr("fedglioma_client.reach.TIMEOUT_S", 0.3)
    with socket.socket() as dumb:
        dumb.bind(("127.0.0.1", 0))
        dumb.listen()
        found = knock(ground.config(dumb.getsockname()[1]))
    assert found.door is Door.AWAY
    assert "timed out" in found.detail


def test_server_of_another_authority_is_not_the_consortiums(ground, tmp_path):
    other = Ground(tmp_path)
    with other.serving(other.gate()) as port:
        found = knock(ground.config(port))
    assert found.door is Door.IDENTITY
    assert "its certificate is not the consortium's" in found.detail


def test_server_without_tls_is_told(ground):
    with serving(ground.gate(), Address("127.0.0.1", 0)) as port:
        found = knock(ground.config(port))
    assert found.door is Door.IDENTITY
    assert "no TLS there" in found.detail


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_proxy_that_is_not_there_is_named_without_its_password(scheme, ground, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"{scheme}it:secret@localhost:{port}")
        found = knock(ground.config(1))
    assert found.door is Door.AWAY
    assert "127.0.0.1:1 does not answer through the proxy localhost (" in found.detail
    assert "HTTPS_PROXY" in found.remedy
    assert "secret" not in found.detail + found.remedy


def test_server_that_no_proxy_is_asked_for_is_reached_without_one(ground, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://localhost:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found = knocked(ground, ground.gate())
    assert found.door is Door.OPEN
    assert "proxy" not in found.detail


@pytest.mark.parametrize(
    "proxy", ["http://it:qq/ssw0rd@proxy.example.org:3128", "ftp://it:ssw0rd@proxy.example.org"]
)
def test_proxy_that_is_no_url_is_told_without_its_password(proxy, ground, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigError, match="HTTPS_PROXY, or another") as raised:
        knock(ground.config(1))
    assert "qq" not in str(raised.value)
    assert "ssw0rd" not in str(raised.value)


@pytest.mark.parametrize("missing", ["server", "key", "ca"])
def test_settings_without_a_server_a_key_or_an_authority_are_told(missing, ground):
    with pytest.raises(ConfigError, match=r"henan\.yaml: server, ca and key are needed to join"):
        knock(ground.config(1, **{missing: None}))


@pytest.mark.parametrize("content", ["not a certificate", "", "é"])
def test_damaged_authority_is_told_with_its_file(content, ground, tmp_path):
    (tmp_path / "ca.pem").write_text(content)
    with pytest.raises(ConfigError, match=r"ca\.pem: is no readable PEM certificate"):
        knock(ground.config(1, ca=tmp_path / "ca.pem"))


def test_key_that_others_can_read_is_not_used(ground, tmp_path):
    create_private_key(tmp_path / "node.key")
    assert public_bytes(read_private_key(tmp_path / "node.key"))
    (tmp_path / "node.key").chmod(0o644)
    with pytest.raises(IdentityError, match="other users of this computer"):
        knock(ground.config(1, key=tmp_path / "node.key"))
