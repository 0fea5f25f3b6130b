"""Keys between two sites, what they seal with them, and what a site signs.

X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869) make a key for one purpose between two sites;
ChaCha20-Poly1305 (RFC 8439) seals with it; a site's node key (P-384, ``nodekey.py``) signs. Everything that
is hashed or signed begins with what it is for, so that nothing signed here means anything elsewhere.
"""

import hashlib
import json
import secrets
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydantic import JsonValue

from fedglioma.errors import PrivacyError, ProtocolError

KEY_BYTES: Final = 32
SEAL_BYTES: Final = 16
"""By which a sealed text is longer."""
_NONCE: Final = bytes(12)
"""A sealing key seals one text, so its nonce need not change."""


def told(purpose: str, *content: JsonValue) -> bytes:
    """Return what is hashed, signed or bound to a key: a purpose and what it is about, unambiguously."""
    text = json.dumps(list(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"fedglioma secure sum 1: {purpose}\n{text}".encode()


def digest(purpose: str, *content: JsonValue) -> str:
    """Return the sha256 of a purpose and what it is about, as 64 hexadecimal digits."""
    return hashlib.sha256(told(purpose, *content)).hexdigest()


def new_secret() -> bytes:
    """Return 32 random bytes of the system: a private key, or a seed."""
    return secrets.token_bytes(KEY_BYTES)


def public_of(private: bytes) -> bytes:
    """Return the public X25519 key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def derive(secret: bytes, about: bytes) -> bytes:
    """Return a key of 32 bytes for one purpose, from a secret one."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=about).derive(secret)


def shared_key(private: bytes, public: bytes, about: bytes) -> bytes:
    """Return the key of 32 bytes that the owners of two key pairs have in common for one purpose.

    Raises
    ------
    ProtocolError
        The public key is one of those that give everybody the same key.
    """
    try:
        common = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError:
        raise ProtocolError("secure sum: a public key is no usable X25519 key; leave its site out") from None
    return derive(common, about)


def is_usable(public: bytes) -> bool:
    """Whether a public key is none of those that give everybody the same key."""
    try:
        shared_key(new_secret(), public, b"")
    except ProtocolError:
        return False
    return True


def seal(key: bytes, content: bytes, about: bytes) -> bytes:
    """Return a text sealed with a key that seals nothing else; ``about`` is bound to it."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, content, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes | None:
    """Return what was sealed; None where it was changed, or sealed for somebody or something else."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, about)
    except (InvalidTag, ValueError):
        return None


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """Return the signature of a site's node key: ECDSA with SHA-384, DER."""
    return key.sign(message, ec.ECDSA(hashes.SHA384()))


def is_signed(public: str, signature: bytes, message: bytes) -> bool:
    """Whether a signature is that of a node key, given as PEM text like ``nodekey.read_public_key``'s.

    Raises
    ------
    PrivacyError
        The public key is none.
    """
    try:
        key = serialization.load_pem_public_key(public.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise PrivacyError("secure sum: the list of the sites' node keys holds something that is none")
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        return False
    return True
