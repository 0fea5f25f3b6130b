import fcntl
import json
import os
import ssl
import subprocess
import sys
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedglioma.config.server import load_server_config
from fedglioma.config.site import load_site_config
from fedglioma.nodekey import (
    create_private_key,
    fingerprint,
    public_bytes,
    public_line,
    read_private_key,
    read_public_key,
    short_fingerprint,
)
from fedglioma_server import authority as ca
from fedglioma_server.provision_request import Request
from fedglioma_server.provision_status import status
from fedglioma_server.run_provision import provision
from tests.cli_fixture import call, data_of, reason_of

NOW = ca.today()
HOST = ("--host", "fed.example.org")


def run(out: Path, *words: str | Path) -> Result:
    return call("provision", "--out", out, *words)


def done(out: Path, *words: str | Path) -> dict[str, Any]:
    """Return the data of a command that must have gone well."""
    result = run(out, *words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return data_of(result)


def refused(out: Path, code: int, *words: str | Path) -> str:
    """Return why a command was refused, once nothing was found to have changed."""
    before = contents(out)
    result = run(out, *words)
    assert result.exit_code == code, result.stderr
    assert contents(out) == before
    return reason_of(result)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def own_key(folder: Path, name: str = "own") -> Path:
    folder = folder / name
    folder.mkdir()
    public = create_private_key(folder / "node.key")
    (folder / "node.pub").write_text(public_line(public, "somebody@some-computer"))
    return folder / "node.pub"


@pytest.fixture
def consortium(tmp_path: Path) -> Path:
    """A consortium of two hospitals."""
    out = tmp_path / "consortium"
    provision(Request(out, hosts=("fed.example.org", "127.0.0.1"), sites=("ningxia", "henan")), now=NOW)
    return out


def test_first_command_makes_all_that_server_and_hospitals_need(tmp_path: Path) -> None:
    out = tmp_path / "consortium"
    words = (*HOST, "--host", "10.0.0.5", "--port", "9443", "--name", "Glioma 联盟", "--site", "ningxia")
    data = done(out, *words, "--contact", "Dr. Wang")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        *("ca/ca.key", "ca/ca.pem", "kits/ningxia.tar.gz", "kits/ningxia/README.md"),
        *("kits/ningxia/SHA256SUMS", "kits/ningxia/ca.pem", "kits/ningxia/ningxia.yaml"),
        *("kits/ningxia/node.key", "kits/ningxia/node.pub", "server.yaml", "server/server.key"),
        *("server/server.pem", "sites/ningxia.pub"),
    ]
    config = load_server_config(out / "server.yaml")
    assert (config.port, config.expected) == (9443, ("ningxia",))
    assert config.certificate is not None
    assert config.key is not None
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.certificate, config.key)
    assert load_site_config(out / "kits" / "ningxia" / "ningxia.yaml").server == "fed.example.org:9443"
    assert read_public_key(out / "sites" / "ningxia.pub") == read_public_key(out / "kits/ningxia/node.pub")
    assert data["consortium"] == "Glioma 联盟"
    assert data["server"]["hosts"] == ["fed.example.org", "10.0.0.5"]
    assert data["server"]["days_left"] in (396, 397)
    assert data["authority"]["days_left"] in (3649, 3650)
    assert "Dr. Wang" in (out / "kits/ningxia/README.md").read_text()


def test_secrets_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        done(tmp_path / "consortium", *HOST, "--site", "ningxia")
    finally:
        os.umask(before)
    out = tmp_path / "consortium"
    secret = ("ca/ca.key", "server/server.key", "kits/ningxia/node.key", "kits/ningxia.tar.gz")
    assert {path: (out / path).stat().st_mode & 0o777 for path in secret} == dict.fromkeys(secret, 0o600)
    folders = (".", "ca", "server", "kits", "kits/ningxia")
    assert {path: (out / path).stat().st_mode & 0o777 for path in folders} == dict.fromkeys(folders, 0o700)


def test_no_output_holds_a_private_key(tmp_path: Path) -> None:
    out = tmp_path / "consortium"
    words = (*HOST, "--site", "ningxia", "--log-level", "DEBUG")
    results = [run(out, *words), run(out, "--site", "henan", "--format", "json"), run(out, "--status")]
    results += [
        run(out, "--renew-server", "--new-key", "--format", "json"),
        run(out, "--renew-site", "henan"),
    ]
    secrets = [
        line
        for path in (*out.rglob("*.key"), *out.rglob("*.key.old-*"))
        for line in path.read_text().splitlines()[1:-1]
    ]
    assert len(secrets) > 20
    for result in results:
        assert result.exit_code == 0
        assert "PRIVATE KEY" not in result.output
        assert not [secret for secret in secrets if secret in result.output]


def test_same_command_again_changes_nothing(consortium: Path) -> None:
    before = contents(consortium)
    data = done(consortium, *HOST, "--host", "127.0.0.1", "--site", "ningxia", "--site", "henan")
    assert contents(consortium) == before
    assert [(site["site"], site["outcome"]) for site in data["sites"]] == [
        ("henan", "kept"),
        ("ningxia", "kept"),
    ]
    assert not data["authority"]["new"]
    assert not data["server"]["new"]


def test_another_site_is_added_and_the_rest_stays(consortium: Path) -> None:
    before = contents(consortium)
    data = done(consortium, "--site", "zhengzhou")
    after = contents(consortium)
    assert {path: after[path] for path in before} == before
    assert {Path(path).name for path in after.keys() - before.keys()} == {
        *("README.md", "SHA256SUMS", "ca.pem", "zhengzhou.yaml", "node.key", "node.pub"),
        *("zhengzhou.tar.gz", "zhengzhou.pub"),
    }
    assert data["sites"][0]["outcome"] == "added"
    assert data["warnings"] == [f"{consortium}/server.yaml: expected: does not name zhengzhou; add it"]


def test_site_is_added_while_the_authoritys_key_lies_in_a_safe(consortium: Path, tmp_path: Path) -> None:
    (consortium / "ca" / "ca.key").rename(tmp_path / "safe")
    assert done(consortium, "--site", "zhengzhou")["sites"][0]["outcome"] == "added"
    assert "ca.key: no such key file" in refused(consortium, 2, "--renew-server")


def test_site_that_brings_its_key_gets_a_kit_without_one(consortium: Path, tmp_path: Path) -> None:
    pub = own_key(tmp_path)
    data = done(consortium, "--site-key", f"zhengzhou={pub}")
    site = data["sites"][0]
    assert site["own_key"]
    assert site["fingerprint"] == fingerprint(read_public_key(pub))
    with tarfile.open(site["archive"]) as tar:
        assert "zhengzhou/node.key" not in tar.getnames()
    listed = (consortium / "sites" / "zhengzhou.pub").read_text()
    assert read_public_key(consortium / "sites" / "zhengzhou.pub") == read_public_key(pub)
    assert "somebody" not in listed  # the comment names a person's account


def test_archives_digest_is_told(consortium: Path) -> None:
    site = done(consortium, "--site", "zhengzhou")["sites"][0]
    said = subprocess.run(  # noqa: S603 - our own words
        ["sha256sum", site["archive"]],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.split()[0] == site["archive_sha256"]


def test_site_that_lost_its_kit_here_is_kept(consortium: Path) -> None:
    for path in (consortium / "kits" / "ningxia").iterdir():
        path.unlink()
    (consortium / "kits" / "ningxia").rmdir()
    (consortium / "kits" / "ningxia.tar.gz").unlink()
    result = run(consortium, "--site", "ningxia")
    assert result.exit_code == 0
    assert "kit is not here any more; --renew-site ningxia" in result.stdout
    assert not (consortium / "kits" / "ningxia").exists()
    assert "kit not here any more" in run(consortium, "--status").stdout


def test_kit_of_a_sites_own_key_is_made_again(consortium: Path, tmp_path: Path) -> None:
    pub = own_key(tmp_path)
    done(consortium, "--site-key", f"zhengzhou={pub}")
    (consortium / "kits" / "zhengzhou.tar.gz").unlink()
    assert done(consortium, "--site-key", f"zhengzhou={pub}")["sites"][0]["outcome"] == "kept"
    assert (consortium / "kits" / "zhengzhou.tar.gz").exists()


def test_server_certificate_is_renewed_with_the_key_kept(consortium: Path) -> None:
    old, key = (
        ca.read_certificate(consortium / "server/server.pem"),
        (consortium / "server/server.key").read_bytes(),
    )
    data = done(consortium, "--renew-server", "--days", "30")
    new = ca.read_certificate(consortium / "server" / "server.pem")
    assert ca.read_certificate(consortium / "server" / f"server.pem.old-{old.serial_number:x}") == old
    assert (consortium / "server" / "server.key").read_bytes() == key
    assert new.serial_number != old.serial_number
    assert ca.hosts_of(new) == ca.hosts_of(old)
    assert data["server"]["new"]
    assert sorted(path.name for path in (consortium / "server").iterdir()) == [
        *("server.key", "server.pem", f"server.pem.old-{old.serial_number:x}")
    ]


def test_server_certificate_is_renewed_with_another_key_and_names(consortium: Path) -> None:
    server = consortium / "server"
    old, key = ca.read_certificate(server / "server.pem"), (server / "server.key").read_bytes()
    data = done(consortium, "--renew-server", "--new-key", "--host", "new.example.org")
    kept = server / f"server.key.old-{old.serial_number:x}"
    assert kept.read_bytes() == key
    assert kept.stat().st_mode & 0o777 == (server / "server.key").stat().st_mode & 0o777 == 0o600
    assert ca.hosts_of(ca.read_certificate(server / "server.pem")) == ("new.example.org",)
    ca.check_pair(
        ca.read_certificate(server / "server.pem"), ca.read_key(server / "server.key"), "server.key"
    )
    assert data["warnings"] == [
        "kits handed out before connect to fed.example.org, which the server no longer is"
    ]


def test_renewed_site_gets_a_new_key_and_the_old_one_is_barred(consortium: Path) -> None:
    old = read_public_key(consortium / "sites" / "ningxia.pub")
    done(consortium, "--renew-site", "ningxia")
    new = read_public_key(consortium / "sites" / "ningxia.pub")
    assert new != old
    assert public_bytes(read_private_key(consortium / "kits/ningxia/node.key")) == new
    assert read_public_key(consortium / "sites/revoked" / f"ningxia-{short_fingerprint(old)}.pub") == old
    aside = consortium / "kits" / f"ningxia.old-{short_fingerprint(old)}"
    assert public_bytes(read_private_key(aside / "node.key")) == old
    assert aside.with_name(f"{aside.name}.tar.gz").exists()


def test_site_renews_with_a_key_of_its_own(consortium: Path, tmp_path: Path) -> None:
    first, second = own_key(tmp_path, "first"), own_key(tmp_path, "second")
    done(consortium, "--site-key", f"zhengzhou={first}")
    said = refused(consortium, 2, "--renew-site", "zhengzhou")
    assert "made its own key" in said
    assert "is the key that is to be replaced" in refused(
        consortium, 7, "--renew-site", "zhengzhou", "--site-key", f"zhengzhou={first}"
    )
    data = done(consortium, "--renew-site", "zhengzhou", "--site-key", f"zhengzhou={second}")
    assert data["sites"][0]["outcome"] == "renewed"
    assert read_public_key(consortium / "sites" / "zhengzhou.pub") == read_public_key(second)
    assert "was revoked" in refused(
        consortium, 7, "--renew-site", "zhengzhou", "--site-key", f"zhengzhou={first}"
    )


def test_revoked_site_is_out_until_it_is_renewed(consortium: Path) -> None:
    old = read_public_key(consortium / "sites" / "henan.pub")
    data = done(consortium, "--revoke", "henan")
    assert data["sites"][0]["outcome"] == "revoked"
    assert data["warnings"] == [f"{consortium}/server.yaml: expected: still names henan; remove it"]
    assert not (consortium / "sites" / "henan.pub").exists()
    assert read_public_key(consortium / "sites/revoked" / f"henan-{short_fingerprint(old)}.pub") == old
    # A command from a note of old must not let it in again.
    assert "--renew-site henan admits it again" in refused(consortium, 2, "--site", "henan")
    assert done(consortium, "--revoke", "henan")["sites"][0]["outcome"] == "revoked"
    done(consortium, "--renew-site", "henan")
    assert read_public_key(consortium / "sites" / "henan.pub") != old


def test_site_is_revoked_even_when_the_authority_expired(tmp_path: Path) -> None:
    out = tmp_path / "consortium"
    provision(Request(out, hosts=("a.org",), sites=("henan",), ca_days=1), now=NOW - timedelta(days=2))
    assert "expired" in refused(out, 7, "--site", "ningxia")
    assert "expired" in refused(out, 7, "--renew-server")
    assert done(out, "--revoke", "henan")["sites"][0]["outcome"] == "revoked"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--site", "Ningxia"), "1-32 lower-case letters"),
        (("--site", "../x"), "1-32 lower-case letters"),
        (("--site", "a" * 33), "1-32 lower-case letters"),
        (("--site", ""), "1-32 lower-case letters"),
        (("--site", "a", "--site", "a"), "named twice"),
        (("--site", "a", "--revoke", "a"), "named twice"),
        (("--site-key", "ningxia"), "NAME=FILE"),
        (("--site-key", "ningxia="), "NAME=FILE"),
        (("--site-key", "ningxia=absent.pub"), "no such key file"),
        (("--revoke", "unknown"), "no such site"),
        (("--renew-site", "unknown"), "sites there: henan, ningxia"),
        (("--host", "https://a.org"), "not a host name"),
        (("--host", "other.example.org"), "is for fed.example.org, 127.0.0.1"),
        (("--days", "10"), "add --renew-server"),
        (("--ca-days", "10"), "made already"),
        (("--name", "other"), "this consortium is fedglioma"),
        (("--contact", "a\nb"), "printable"),
        (("--new-key",), "goes with --renew-server"),
        (("--status", "--site", "a"), "only looks"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(
    consortium: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in refused(consortium, 2, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--site", "a"), "name the server as the hospitals reach it"),
        ((*HOST, "--renew-server"), "no server certificate yet"),
        ((*HOST, "--revoke", "a"), "sites there: none"),
        (("--status",), "no consortium there"),
        ((*HOST, "--name", "x" * 65), "1 to 64 printable"),
        ((*HOST, "--site", "a", "--site-key", "a=x.pub"), "no such key file"),
    ],
)
def test_refused_first_command_leaves_no_folder(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    out = tmp_path / "consortium"
    assert said in refused(out, 2, *words)
    assert not out.exists()


def test_key_of_another_kind_or_of_another_site_is_refused(consortium: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "p256.pub"
    wrong.write_bytes(
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    assert "ecdsa-sha2-nistp384" in refused(consortium, 7, "--site-key", f"a={wrong}")
    henan = consortium / "sites" / "henan.pub"
    assert "this key is henan's" in refused(consortium, 7, "--site-key", f"a={henan}")
    pub = own_key(tmp_path)
    assert "this key is a's" in refused(consortium, 7, "--site-key", f"a={pub}", "--site-key", f"b={pub}")
    assert "has another key already" in refused(consortium, 2, "--site-key", f"henan={pub}")
    assert "named twice" in refused(consortium, 2, "--site-key", f"a={pub}", "--site-key", f"a={pub}")
    assert "named twice" in refused(consortium, 2, "--site-key", f"a={pub}", "--site", "a")
    private = consortium / "kits" / "henan" / "node.key"
    assert "private key" in refused(consortium, 7, "--site-key", f"a={private}")
    done(consortium, "--revoke", "henan")
    barred = next((consortium / "sites" / "revoked").iterdir())
    assert "was revoked" in refused(consortium, 7, "--site-key", f"a={barred}")


def test_authority_that_does_not_fit_is_refused(consortium: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    provision(Request(other, hosts=("a.org",)))
    key = consortium / "ca" / "ca.key"
    mine = key.read_bytes()
    key.write_bytes((other / "ca" / "ca.key").read_bytes())
    assert "does not belong" in refused(consortium, 7, "--renew-server")
    key.write_bytes(b"")
    assert "ca.key: not an unprotected private key" in refused(consortium, 7, "--renew-server")
    key.write_bytes(mine)
    (consortium / "server" / "server.key").write_bytes((other / "server" / "server.key").read_bytes())
    assert "server.key: does not belong" in refused(consortium, 7, "--renew-server")
    result = run(consortium, "--status")
    assert result.exit_code == 7
    assert "BROKEN" in result.stdout
    done(consortium, "--renew-server", "--new-key")
    (consortium / "ca" / "ca.pem").write_bytes((other / "ca" / "ca.pem").read_bytes())
    assert "not signed by this consortium" in refused(consortium, 7, "--site", "a")


def test_file_in_the_allow_list_that_is_no_key_is_named(consortium: Path) -> None:
    (consortium / "sites" / "a.pub").write_text("ssh-ed25519 AAAA x\n")
    assert "sites/a.pub" in refused(consortium, 7, "--site", "b")
    (consortium / "sites" / "a.pub").rename(consortium / "sites" / "A.pub")
    assert "no site's name" in refused(consortium, 7, "--site", "b")


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    assert "holds thesis.tex" in refused(tmp_path / "home", 2, *HOST, "--site", "a")
    assert "is a file" in reason_of(run(tmp_path / "home" / "thesis.tex", *HOST))


def test_two_commands_at_once_do_not_mix(consortium: Path) -> None:
    handle = os.open(consortium, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another provision is at work" in refused(consortium, 2, "--site", "a")
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    ("days", "code", "state", "left"),
    [(366, 0, "ok", 31), (368, 0, "soon", 29), (397, 7, "expired", 0), (398, 7, "expired", -1)],
)
def test_status_warns_in_time_and_ends_with_7_afterwards(
    tmp_path: Path, days: int, code: int, state: str, left: int
) -> None:
    out = tmp_path / "consortium"
    provision(Request(out, hosts=("a.org",), sites=("henan",)), now=NOW)
    data, text, reason = status(Request(out), now=NOW + timedelta(days=days))
    server = data["rows"][1]
    assert (server["state"], server["days_left"]) == (state, left)
    assert (reason is None) == (code == 0)
    assert ("warning: server a.org: ends within 30 days" in text) == (state == "soon")
    assert [row["what"] for row in data["rows"]] == ["authority", "server", "site"]
    assert {row["state"] for row in data["rows"] if row["what"] != "server"} == {"ok"}


def test_status_prints_a_table_and_one_envelope(tmp_path: Path) -> None:
    out = tmp_path / "consortium"
    provision(Request(out, hosts=("a.org",), sites=("henan",), days=5), now=NOW - timedelta(days=6))
    result = run(out, "--status")
    assert result.exit_code == 7
    assert reason_of(result) == "server a.org: --renew-server makes a new one"
    assert [line.split()[:2] for line in result.stdout.splitlines()[1:]] == [
        ["ok", "authority"],
        ["EXPIRED", "server"],
        ["ok", "site"],
    ]
    result = run(out, "--status", "--format", "json")
    assert data_of(result)["rows"][1]["state"] == "expired"
    done(out, "--renew-server")
    assert run(out, "--status").exit_code == 0


def test_status_notices_a_kit_that_does_not_fit(consortium: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    provision(Request(other, hosts=("a.org",), sites=("henan",)))
    (consortium / "kits/henan/ca.pem").write_bytes((other / "ca/ca.pem").read_bytes())
    assert "another consortium's" in (status(Request(consortium))[2] or "")
    (consortium / "kits/henan/node.pub").write_bytes((other / "kits/henan/node.pub").read_bytes())
    assert "another key than the site's" in (status(Request(consortium))[2] or "")
    (consortium / "sites" / "henan.pub").unlink()
    assert "not admitted" in (status(Request(consortium))[2] or "")


def test_certificate_that_ends_soon_is_warned_about(tmp_path: Path) -> None:
    out = tmp_path / "consortium"
    data, _ = provision(Request(out, hosts=("a.org",), days=100, ca_days=20), now=NOW)
    assert data["warnings"] == [
        f"the authority ends in 20 days, on {NOW + timedelta(days=20):%Y-%m-%d}",
        f"the server's certificate ends in 20 days, on {NOW + timedelta(days=20):%Y-%m-%d}",
        "the server's certificate ends with the authority, which cannot vouch for longer",
    ]


def test_settings_of_the_server_are_the_coordinators_once_written(consortium: Path) -> None:
    path = consortium / "server.yaml"
    path.write_text(path.read_text().replace("port: 8443", "port: 9999"))
    before = path.read_bytes()
    done(consortium, "--site", "zhengzhou")
    assert path.read_bytes() == before
    assert load_site_config(consortium / "kits/zhengzhou/zhengzhou.yaml").server == "fed.example.org:9999"
    data = done(consortium, "--site", "beijing", "--port", "443")
    assert data["server"]["address"] == "fed.example.org:443"
    assert any("is it forwarded?" in warning for warning in data["warnings"])


KILLS = """
import json, os, shutil, sys
from pathlib import Path
from fedglioma_server.consortium import Consortium
from fedglioma_server.provision_request import Request
from fedglioma_server.provision_status import status
from fedglioma_server.run_provision import provision

base, again = Path(sys.argv[1]), sys.argv[2] == "renewal"
first = dict(hosts=("a.org",), sites=("henan", "ningxia"))
wish = dict(renew_server=True, new_key=True, renew_sites=("henan",), revoke=("ningxia",)) if again else first
if again:
    provision(Request(base / "start", **first))

def dying(function, left):
    def dies(*words, **more):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return function(*words, **more)
    return dies

def arm(n):
    left = [n]
    for name in ("link", "mkdir", "rename", "replace", "rmdir", "unlink"):  # pathlib calls these too
        setattr(os, name, dying(getattr(os, name), left))

for n in range(1, 1000):
    out = base / str(n)
    if again:
        shutil.copytree(base / "start", out)
    child = os.fork()
    if child == 0:
        arm(n)
        provision(Request(out, **wish))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), code
    keys = Consortium(out).keys()  # whatever the instant, the allow-list can be read
    assert set(keys) <= {"henan", "ningxia"}
    if code == 0:
        break
    provision(Request(out, **wish))
    data, text, reason = status(Request(out))
    assert reason is None, (n, text)
    assert set(Consortium(out).keys()) == ({"henan"} if again else {"henan", "ningxia"}), n
    left = [str(path) for path in out.rglob("*") if path.name.endswith(".part") or ".next-" in path.name]
    assert not left, (n, left)
print(n)
"""


@pytest.mark.parametrize("kind", ["first", "renewal"])
def test_command_killed_at_any_instant_is_finished_by_typing_it_again(tmp_path: Path, kind: str) -> None:
    # A process of its own: it forks for each instant, which this one, with its threads, must not.
    ended = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", KILLS, tmp_path, kind], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 30  # as many instants


def test_errors_in_json_are_one_envelope(tmp_path: Path) -> None:
    result = run(tmp_path / "consortium", "--site", "A", *HOST, "--format", "json")
    assert result.exit_code == 2
    assert data_of(result)["kind"] == "ConfigError"
    assert json.loads(result.stdout)["status"] == "error"
