import importlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes
from hypothesis import given
from hypothesis import strategies as st

from fedglioma import newfile
from fedglioma.errors import ConfigError, IdentityError
from fedglioma.nodekey import (
    create_private_key,
    fingerprint,
    public_bytes,
    public_line,
    read_private_key,
    read_public_key,
    short_fingerprint,
)

needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed"
)

Other = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def public_file(folder: Path, public: bytes, comment: str = "ningxia") -> Path:
    path = folder / "node.pub"
    path.write_text(public_line(public, comment))
    return path


def ssh_keygen(*words: str | Path) -> str:
    done = subprocess.run(["ssh-keygen", *words], capture_output=True, text=True, input="")  # noqa: S603, S607
    assert done.returncode == 0, done.stderr
    return done.stdout


def openssh(key: Other) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def ssh_public(key: Other) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def test_private_key_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_private_key(tmp_path / "node.key")
    finally:
        os.umask(before)
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["node.key"]


def test_private_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    create_private_key(path)
    content = path.read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        create_private_key(path)
    assert path.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["node.key"]


def test_private_key_is_not_written_where_modes_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    real = os.open

    def memory_stick(path: Path, flags: int, mode: int = 0o777) -> int:
        handle = real(path, flags, mode)
        os.fchmod(handle, 0o755)
        return handle

    monkeypatch.setattr(newfile.os, "open", memory_stick)
    monkeypatch.setattr(newfile.os, "link", lambda *_: written.append(b"linked"))
    with pytest.raises(IdentityError, match="cannot keep a file private"):
        create_private_key(tmp_path / "node.key")
    assert not written
    assert not list(tmp_path.iterdir())


def test_public_key_is_the_bytes_that_flower_registers(tmp_path: Path) -> None:
    # The module's name is shadowed by its function in the package.
    flowers = importlib.import_module("flwr.cli.supernode.register").try_load_public_key
    public = create_private_key(tmp_path / "node.key")
    path = public_file(tmp_path, public)
    assert read_public_key(path) == public == flowers(path)
    key = read_private_key(tmp_path / "node.key")
    assert public_bytes(key) == public_key_to_bytes(key.public_key())


def test_flower_loads_the_private_key_and_its_signature_holds(tmp_path: Path) -> None:
    public = create_private_key(tmp_path / "node.key")
    key = serialization.load_ssh_private_key((tmp_path / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = key.sign(b"now", ec.ECDSA(hashes.SHA256()))
    bytes_to_public_key(public).verify(signature, b"now", ec.ECDSA(hashes.SHA256()))


@needs_ssh_keygen
def test_ssh_keygen_prints_the_same_fingerprint_and_public_key(tmp_path: Path) -> None:
    public = create_private_key(tmp_path / "node.key")
    path = public_file(tmp_path, public)
    assert ssh_keygen("-l", "-f", path).split() == ["384", fingerprint(public), "ningxia", "(ECDSA)"]
    assert ssh_keygen("-y", "-f", tmp_path / "node.key").split()[:2] == path.read_text().split()[:2]


@needs_ssh_keygen
def test_key_that_ssh_keygen_made_is_understood(tmp_path: Path) -> None:
    ssh_keygen("-t", "ecdsa", "-b", "384", "-N", "", "-C", "a comment", "-f", tmp_path / "node")
    public = read_public_key(tmp_path / "node.pub")
    assert public_bytes(read_private_key(tmp_path / "node")) == public
    assert ssh_keygen("-l", "-f", tmp_path / "node.pub").split()[1] == fingerprint(public)


@needs_ssh_keygen
@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa-256", "ecdsa-521"])
def test_public_key_of_another_kind_is_refused(tmp_path: Path, kind: str) -> None:
    name, _, bits = kind.partition("-")
    ssh_keygen("-t", name, *(("-b", bits) if bits else ()), "-N", "", "-f", tmp_path / "node")
    with pytest.raises(IdentityError, match="needed is a key of kind ecdsa-sha2-nistp384"):
        read_public_key(tmp_path / "node.pub")
    with pytest.raises(IdentityError, match="no ecdsa-sha2-nistp384 key"):
        read_private_key(tmp_path / "node")


@needs_ssh_keygen
def test_private_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    ssh_keygen("-t", "ecdsa", "-b", "384", "-N", "secret", "-f", tmp_path / "node")
    with pytest.raises(IdentityError, match="has a passphrase"):
        read_private_key(tmp_path / "node")


@needs_ssh_keygen
def test_signed_certificate_of_a_key_is_not_a_key(tmp_path: Path) -> None:
    ssh_keygen("-t", "ecdsa", "-b", "384", "-N", "", "-f", tmp_path / "node")
    ssh_keygen("-q", "-s", tmp_path / "node", "-I", "x", tmp_path / "node.pub")
    with pytest.raises(IdentityError, match="cert"):
        read_public_key(tmp_path / "node-cert.pub")


def test_curve_that_lies_about_its_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.pub"
    line = ssh_public(ec.generate_private_key(ec.SECP256R1()))
    path.write_bytes(line.replace(b"ecdsa-sha2-nistp256 ", b"ecdsa-sha2-nistp384 "))
    with pytest.raises(IdentityError, match="damaged"):
        read_public_key(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: b"\xef\xbb\xbf" + line,  # a byte order mark, as some editors put it first
        lambda line: line.replace(b"\n", b"\r\n"),
        lambda line: b"# the key of ningxia\n\n" + line + b"\n\n",
    ],
)
def test_editors_and_mail_do_not_spoil_a_public_key(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    public = create_private_key(tmp_path / "node.key")
    path = public_file(tmp_path, public)
    path.write_bytes(change(path.read_bytes()))
    assert read_public_key(path) == public


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: b"", "0 lines"),
        (lambda line: line + line, "2 lines"),
        (lambda line: line[:60], "damaged"),
        (lambda line: line.replace(b"AAAA", b"AAAB", 1), "damaged"),
        (lambda line: b"no-pty " + line, "begins with 'no-pty'"),
        (lambda line: b"\xff\xfe", "not an OpenSSH public key"),
        (lambda line: line + b" " * 20_000, "too large"),
    ],
)
def test_damaged_public_key_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], said: str) -> None:
    path = public_file(tmp_path, create_private_key(tmp_path / "node.key"))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(IdentityError, match=said):
        read_public_key(path)


def test_private_key_in_place_of_the_public_one_is_told_apart(tmp_path: Path) -> None:
    create_private_key(tmp_path / "node.key")
    with pytest.raises(IdentityError, match="must not leave the hospital") as told:
        read_public_key(tmp_path / "node.key")
    secret = (tmp_path / "node.key").read_text().splitlines()[1]
    assert secret not in str(told.value)


def test_absent_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such key file"):
        read_public_key(tmp_path / "node.pub")
    with pytest.raises(ConfigError, match="no such key file"):
        read_private_key(tmp_path / "node.key")
    with pytest.raises(IdentityError, match="cannot be read"):
        read_public_key(tmp_path)


@pytest.mark.parametrize(("mode", "good"), [(0o600, True), (0o400, True), (0o440, True), (0o644, False)])
def test_private_key_that_others_can_read_is_refused(tmp_path: Path, mode: int, good: bool) -> None:
    path = tmp_path / "node.key"
    public = create_private_key(path)
    path.chmod(mode)
    if good:
        assert public_bytes(read_private_key(path)) == public
    else:
        with pytest.raises(IdentityError, match="chmod 600"):
            read_private_key(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: openssh(ed25519.Ed25519PrivateKey.generate()), "no ecdsa-sha2-nistp384 key"),
        (lambda: openssh(ec.generate_private_key(ec.SECP384R1()))[:300], "damaged"),
        (lambda: b"", "not an OpenSSH private key"),
    ],
)
def test_private_key_that_cannot_be_used_is_refused(
    tmp_path: Path, content: Callable[[], bytes], said: str
) -> None:
    path = tmp_path / "node.key"
    path.touch(mode=0o600)
    path.write_bytes(content())
    with pytest.raises(IdentityError, match=said):
        read_private_key(path)


def test_short_fingerprint_is_fit_for_a_file_name(tmp_path: Path) -> None:
    public = create_private_key(tmp_path / "node.key")
    assert len(short_fingerprint(public)) == 8
    assert set(short_fingerprint(public)) <= set("0123456789abcdef")


@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=100).map(lambda t: f"ecdsa-sha2-nistp384 {t}".encode())
    )
)
def test_no_content_of_a_file_is_a_surprise(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node"
    path.touch(mode=0o600)
    path.write_bytes(content)
    for read in (read_public_key, read_private_key):
        with pytest.raises(IdentityError):
            read(path)


def test_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with (  # the block writes a file, and then fails
        pytest.raises(ConfigError),
        newfile.new_folder(tmp_path / "kit") as part,
        newfile.new_folder(part / "a"),
    ):
        newfile.write_new(part / "a", b"a")
    assert not list(tmp_path.iterdir())
    with newfile.new_folder(tmp_path / "kit") as part:
        newfile.write_new(part / "a", b"a")
        assert not (tmp_path / "kit").exists()
    assert (tmp_path / "kit" / "a").read_bytes() == b"a"
    with pytest.raises(ConfigError, match="never overwritten"), newfile.new_folder(tmp_path / "kit"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


def test_file_that_is_replaced_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), newfile.replacing(path) as file:
        file.write("half")  # type: ignore[call-overload]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
    with newfile.replacing(path, mode=newfile.PRIVATE) as file:
        (part,) = tmp_path.glob(newfile.PART)
        assert part.stat().st_mode & 0o777 == 0o600
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


def test_leftovers_of_a_kill_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".ca.12345678.part").mkdir()
    (tmp_path / ".ca.12345678.part" / "ca.key").touch()
    (tmp_path / ".node.key.12345678.part").touch()
    (tmp_path / "kept").touch()
    newfile.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
