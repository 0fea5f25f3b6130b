"""The consortium's certificate authority, and the server's certificate that it signs.

One root and one level, all P-384. The extensions are what strict verification asks for, which is the
default of Python from 3.13 on (``VERIFY_X509_STRICT``): RFC 5280 sections 4.2.1.1 to 4.2.1.12.
"""

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedglioma.errors import ConfigError, IdentityError
from fedglioma.nodekey import read_file

CLOCK_SKEW = timedelta(hours=1)
"""A hospital's clock may be this far behind."""

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
LONGEST_NAME = 64
"""Letters of an organisation's name in a certificate (RFC 5280, ub-organization-name)."""

Key = ec.EllipticCurvePrivateKey
Certificate = x509.Certificate


def new_key() -> Key:
    """Return a new P-384 private key."""
    return ec.generate_private_key(ec.SECP384R1())


def create_authority(key: Key, name: str, *, days: int, now: datetime) -> Certificate:
    """Return the self-signed certificate of a consortium's authority, valid from an hour ago.

    Parameters
    ----------
    key : private key
        The authority's own.
    name : str
        The consortium's, at most 64 letters.
    """
    subject = _subject(name, "fedglioma certificate authority")
    builder = _builder(subject, subject, key, now, now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA384())


def issue_server(
    authority: Certificate, authority_key: Key, key: Key, hosts: Sequence[str], *, days: int, now: datetime
) -> Certificate:
    """Return a server's certificate for names and addresses, valid from an hour ago.

    It ends with its authority at the latest: nothing would accept it afterwards.

    Raises
    ------
    IdentityError
        The authority has expired, or the key is not its own.
    """
    check_authority(authority, authority_key, now)
    until = min(now + timedelta(days=days), authority.not_valid_after_utc)
    subject = _subject(consortium_name(authority), "fedglioma server")
    builder = _builder(subject, authority.subject, key, now, until)
    try:
        identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        raise IdentityError(
            "ca.pem: the authority's certificate has no key identifier; provision made none such"
        ) from None
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(authority_key, hashes.SHA384())
    )


def check_authority(authority: Certificate, key: Key | None, now: datetime) -> None:
    """Raise ``IdentityError`` unless the authority is valid now and the key, where one is given, its own."""
    if key is not None:
        check_pair(authority, key, "ca.key")
    if now < authority.not_valid_before_utc:
        raise IdentityError(
            f"ca.pem: the authority is valid from {authority.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only; "
            "correct this computer's clock"
        )
    if now >= authority.not_valid_after_utc:
        raise IdentityError(
            f"ca.pem: the authority expired on {authority.not_valid_after_utc:%Y-%m-%d}; "
            "make a new consortium folder and give every hospital a new kit"
        )


def check_pair(certificate: Certificate, key: Key, place: str) -> None:
    """Raise ``IdentityError`` unless the private key belongs to the certificate."""
    if certificate.public_key() != key.public_key():
        raise IdentityError(
            f"{place}: does not belong to the certificate beside it; restore both from one copy"
        )


def check_issued(certificate: Certificate, authority: Certificate, place: str) -> None:
    """Raise ``IdentityError`` unless the authority signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        raise IdentityError(f"{place}: was not signed by this consortium's authority") from None


def read_certificate(path: Path) -> Certificate:
    """Return the certificate in a PEM file.

    Raises
    ------
    ConfigError
        There is no such file.
    IdentityError
        The file cannot be read or holds no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(read_file(path, "certificate"))
    except ValueError:
        raise IdentityError(f"{path}: not a certificate in PEM form, or damaged") from None


def read_key(path: Path) -> Key:
    """Return the P-384 private key in a PEM file.

    Raises
    ------
    ConfigError
        There is no such file.
    IdentityError
        The file cannot be read or holds no such key.
    """
    try:
        key = serialization.load_pem_private_key(read_file(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"{path}: not an unprotected private key in PEM form, or damaged") from None
    if not isinstance(key, Key) or not isinstance(key.curve, ec.SECP384R1):
        raise IdentityError(f"{path}: not a P-384 key")
    return key


def certificate_pem(certificate: Certificate) -> bytes:
    """Return a certificate as the text of a PEM file."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key) -> bytes:
    """Return a private key as the text of a PEM file; for files of mode 0600 only."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_fingerprint(certificate: Certificate) -> str:
    """Return the fingerprint as ``openssl x509 -fingerprint -sha256`` prints it: ``AB:CD:...``."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def consortium_name(certificate: Certificate) -> str:
    """Return the consortium's name as it stands in a certificate; empty if there is none."""
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""


def hosts_of(certificate: Certificate) -> tuple[str, ...]:
    """Return the names and addresses that a certificate is for, in their order."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress))


def days_left(certificate: Certificate, now: datetime) -> int:
    """Return whole days until a certificate ends; negative once it has."""
    return (certificate.not_valid_after_utc - now) // timedelta(days=1)


def today() -> datetime:
    """Return the time in UTC, to the second, as certificates state it."""
    return datetime.now(UTC).replace(microsecond=0)


def checked_host(text: str) -> str:
    """Return a host's name or address as it belongs into a certificate: lower case, short form.

    Raises
    ------
    ConfigError
        It is neither a name nor an address that something could connect to.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return _checked_name(text)
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_unspecified or address.is_multicast or getattr(address, "scope_id", None):
        raise ConfigError(
            f"--host {text}: no address that a hospital could connect to; name the server's own"
        )
    return str(address)


def _checked_name(text: str) -> str:
    name = text.lower()
    labels = name.split(".")
    # A last part of digits alone is a mistyped address, never a name (RFC 1123 section 2.1).
    if not text.isascii() or len(name) > 253 or not all(map(LABEL.fullmatch, labels)) or labels[-1].isdigit():
        raise ConfigError(
            f"--host {text!r}: not a host name or IP address; letters, digits, hyphens and dots, "
            "without https:// and port (names in other scripts in their xn-- form)"
        )
    return name


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(organisation: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{use: use in allowed for use in every})
