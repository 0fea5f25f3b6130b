"""The key pair by which a site proves who it is: OpenSSH files, curve P-384 (``ecdsa-sha2-nistp384``).

The private key stays where it was made. The public key, in the form that Flower compares (PEM,
``SubjectPublicKeyInfo``), is what the server knows a site by.
"""

import base64
import hashlib
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedglioma.errors import ConfigError, IdentityError
from fedglioma.newfile import PRIVATE, write_new

KEY_TYPE = "ecdsa-sha2-nistp384"
PRIVATE_NAME = "node.key"
PUBLIC_NAME = "node.pub"
LARGEST = 16_384
"""Bytes of a file that is still read as a key; an OpenSSH key of this kind has under a thousand."""

MAKE_ONE = "'fedglioma-client --site NAME keygen' makes one"


def create_private_key(path: Path) -> bytes:
    """Write a new private key with mode 0600 where no file was, and return its public key.

    Raises
    ------
    ConfigError
        A file of that name is there; it is kept as it is.
    IdentityError
        The file system cannot keep the file private.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    write_new(path, content, mode=PRIVATE)
    return public_bytes(key)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the private key in an OpenSSH file.

    A file that its group may read is accepted, because container platforms hand out secrets that way.

    Raises
    ------
    ConfigError
        There is no such file.
    IdentityError
        Other users can read the file, or it is no unprotected P-384 key.
    """
    content = read_file(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o037:
        raise IdentityError(
            f"{path}: other users of this computer can use this private key; chmod 600 {path}"
        )
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except TypeError:
        raise IdentityError(
            f"{path}: has a passphrase, which nobody could type after a restart; {MAKE_ONE}"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise IdentityError(f"{path}: not an OpenSSH private key, or damaged; {MAKE_ONE}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise IdentityError(f"{path}: is no {KEY_TYPE} key; {MAKE_ONE}")
    return key


def public_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key of a private one, in the form that Flower compares."""
    return _spki(key.public_key())


def read_public_key(path: Path) -> bytes:
    """Return the public key in an OpenSSH file, in the form that Flower compares.

    Raises
    ------
    ConfigError
        There is no such file.
    IdentityError
        The file holds something else than one P-384 public key.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise IdentityError(f"{path}: not an OpenSSH public key; {MAKE_ONE}") from None
    if "PRIVATE KEY" in text:
        raise IdentityError(
            f"{path}: holds a private key, which must not leave the hospital; "
            f"give {PUBLIC_NAME} in place of {PRIVATE_NAME}"
        )
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if len(lines) != 1:
        raise IdentityError(f"{path}: holds {len(lines)} lines, not one OpenSSH public key; {MAKE_ONE}")
    kind = lines[0].split()[0]
    if kind != KEY_TYPE:
        raise IdentityError(
            f"{path}: begins with {kind[:40]!r}, needed is a key of kind {KEY_TYPE}; {MAKE_ONE}"
        )
    try:
        key = serialization.load_ssh_public_key(lines[0].encode())
    except (ValueError, UnsupportedAlgorithm):
        raise IdentityError(f"{path}: a damaged public key; copy the file again") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise IdentityError(f"{path}: is no {KEY_TYPE} key; {MAKE_ONE}")
    return _spki(key)


def public_line(public: bytes, comment: str) -> str:
    """Return a public key as the line of an OpenSSH file."""
    return f"{KEY_TYPE} {base64.b64encode(_blob(public)).decode()} {comment}\n"


def fingerprint(public: bytes) -> str:
    """Return a public key's fingerprint as ``ssh-keygen -l`` prints it: ``SHA256:...``."""
    return f"SHA256:{base64.b64encode(hashlib.sha256(_blob(public)).digest()).decode().rstrip('=')}"


def short_fingerprint(public: bytes) -> str:
    """Return the first 8 hexadecimal digits of the same hash: fit for the name of a file."""
    return hashlib.sha256(_blob(public)).hexdigest()[:8]


def read_file(path: Path, kind: str = "key") -> bytes:
    """Return a small file whole; ``kind`` is what it should be, for the words of an error.

    Raises
    ------
    ConfigError
        There is no such file.
    IdentityError
        It cannot be read or is too large.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such {kind} file") from None
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read ({error.strerror}); correct its owner or mode") from None
    if len(content) > LARGEST:
        raise IdentityError(f"{path}: too large for a {kind}")
    return content


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _blob(public: bytes) -> bytes:
    """Return the key as the SSH protocol writes it, which is what fingerprints are taken of."""
    key = serialization.load_pem_public_key(public)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError(f"a public key is of kind {type(key).__name__}, not {KEY_TYPE}")
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return base64.b64decode(line.split()[1])
