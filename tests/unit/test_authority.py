import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from fedglioma.config.site import SERVER_ADDRESS
from fedglioma.errors import ConfigError, IdentityError
from fedglioma_server import authority as ca

NOW = ca.today()
HOSTS = ("fed.example.org", "127.0.0.1", "::1")

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@dataclass(frozen=True)
class Pair:
    """An authority and a server's certificate of it, with their keys."""

    authority: ca.Certificate
    authority_key: ca.Key
    server: ca.Certificate
    server_key: ca.Key

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "ca.pem").write_bytes(ca.certificate_pem(self.authority))
        (folder / "server.pem").write_bytes(ca.certificate_pem(self.server))
        (folder / "server.key").write_bytes(ca.key_pem(self.server_key))
        return folder


def make(*, now: datetime = NOW, days: int = 397, ca_days: int = 3650) -> Pair:
    authority_key, server_key = ca.new_key(), ca.new_key()
    authority = ca.create_authority(authority_key, "Glioma 联盟", days=ca_days, now=now)
    server = ca.issue_server(authority, authority_key, server_key, HOSTS, days=days, now=now)
    return Pair(authority, authority_key, server, server_key)


PAIR = make()


def verify(pair: Pair, host: str, at: datetime = NOW, authority: ca.Certificate = PAIR.authority) -> None:
    """Verify with the rules of the web's own authorities, as the cryptography package has them."""
    policy = PolicyBuilder().store(Store([authority])).time(at)
    try:
        name: x509.IPAddress | x509.DNSName = x509.IPAddress(ip_address(host))
    except ValueError:
        name = x509.DNSName(host)
    policy.build_server_verifier(name).verify(pair.server, [])


def shake_hands(served: Path, trusted: Path, name: str) -> str | None:
    """Return the protocol that a real handshake on loopback agreed on; raise as the client would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(served / "server.pem", served / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):  # the client's refusal
            context.wrap_socket(connection, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.create_default_context(cafile=str(trusted / "ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with (
            socket.create_connection(listener.getsockname()) as plain,
            client.wrap_socket(plain, server_hostname=name) as secure,
        ):
            return secure.version()
    finally:
        thread.join()
        listener.close()


@pytest.mark.parametrize("host", HOSTS)
def test_server_certificate_is_verified_for_each_of_its_hosts(host: str) -> None:
    verify(PAIR, host)


@pytest.mark.parametrize("host", ["example.org", "a.fed.example.org", "127.0.0.2"])
def test_server_certificate_is_refused_for_another_host(host: str) -> None:
    with pytest.raises(VerificationError):
        verify(PAIR, host)


def test_server_certificate_is_refused_by_another_authority_of_the_same_name() -> None:
    with pytest.raises(VerificationError):
        verify(PAIR, HOSTS[0], authority=make().authority)


@pytest.mark.parametrize(
    ("moment", "good"),
    [
        (timedelta(minutes=-59), True),  # a hospital whose clock is late
        (timedelta(minutes=-61), False),
        (timedelta(days=397, seconds=-1), True),
        (timedelta(days=397, seconds=1), False),
    ],
)
def test_server_certificate_is_valid_from_an_hour_ago_to_its_last_day(moment: timedelta, good: bool) -> None:
    if good:
        verify(PAIR, HOSTS[0], NOW + moment)
    else:
        with pytest.raises(VerificationError):
            verify(PAIR, HOSTS[0], NOW + moment)


@pytest.mark.parametrize("name", HOSTS)
def test_handshake_succeeds_with_the_consortiums_certificate(tmp_path: Path, name: str) -> None:
    folder = PAIR.write(tmp_path)
    assert shake_hands(folder, folder, name) == "TLSv1.3"


def test_handshake_is_refused_by_a_hospital_of_another_consortium(tmp_path: Path) -> None:
    ours, theirs = PAIR.write(tmp_path / "a"), make().write(tmp_path / "b")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(ours, theirs, HOSTS[0])


def test_handshake_is_refused_under_another_name(tmp_path: Path) -> None:
    folder = PAIR.write(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(folder, folder, "evil.example.org")


def test_handshake_is_refused_once_the_certificate_expired(tmp_path: Path) -> None:
    folder = make(now=NOW - timedelta(days=400)).write(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(folder, folder, HOSTS[0])


def test_authority_cannot_be_shown_as_a_server_nor_the_server_sign(tmp_path: Path) -> None:
    forged = ca.issue_server(
        PAIR.authority, PAIR.authority_key, PAIR.server_key, ("evil.example.org",), days=1, now=NOW
    )
    with pytest.raises(IdentityError, match="not signed by"):
        ca.check_issued(forged, PAIR.server, "forged")
    usage = PAIR.server.extensions.get_extension_for_class(x509.KeyUsage).value
    assert not usage.key_cert_sign
    usage = PAIR.authority.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature
    assert PAIR.authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def openssl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *words], capture_output=True, text=True)  # noqa: S603, S607


@needs_openssl
def test_openssl_accepts_the_chain_under_strict_rules(tmp_path: Path) -> None:
    folder = PAIR.write(tmp_path)
    words = ("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", folder / "ca.pem")
    for host in (("-verify_hostname", HOSTS[0]), ("-verify_ip", HOSTS[1]), ("-verify_ip", HOSTS[2])):
        done = openssl(*words, *host, folder / "server.pem")
        assert done.returncode == 0, done.stderr
    assert openssl(*words, "-verify_hostname", "example.org", folder / "server.pem").returncode != 0


@needs_openssl
def test_openssl_reads_the_same_fingerprint_dates_and_curve(tmp_path: Path) -> None:
    file = PAIR.write(tmp_path) / "server.pem"
    said = openssl("x509", "-in", file, "-noout", "-fingerprint", "-sha256", "-enddate", "-text").stdout
    assert f"Fingerprint={ca.certificate_fingerprint(PAIR.server)}" in said
    assert f"notAfter={PAIR.server.not_valid_after_utc:%b %e %H:%M:%S %Y} GMT" in said
    assert "NIST CURVE: P-384" in said
    assert "ecdsa-with-SHA384" in said


def test_certificate_never_outlives_its_authority() -> None:
    pair = make(days=397, ca_days=100)
    assert pair.server.not_valid_after_utc == pair.authority.not_valid_after_utc
    assert ca.days_left(pair.server, NOW) == 100


def test_renewed_certificate_of_the_same_key_is_another_one() -> None:
    again = ca.issue_server(
        PAIR.authority, PAIR.authority_key, PAIR.server_key, HOSTS, days=397, now=NOW + timedelta(days=1)
    )
    assert again.public_key() == PAIR.server.public_key()
    assert again.serial_number != PAIR.server.serial_number
    verify(
        Pair(PAIR.authority, PAIR.authority_key, again, PAIR.server_key), HOSTS[0], NOW + timedelta(days=1)
    )


@pytest.mark.parametrize(
    ("moment", "key", "said"),
    [
        (NOW + timedelta(days=3651), PAIR.authority_key, "expired on"),
        (NOW - timedelta(days=1), PAIR.authority_key, "clock"),
        (NOW, PAIR.server_key, "does not belong"),
    ],
)
def test_authority_signs_nothing_when_it_may_not(moment: datetime, key: ca.Key, said: str) -> None:
    with pytest.raises(IdentityError, match=said):
        ca.issue_server(PAIR.authority, key, ca.new_key(), HOSTS, days=1, now=moment)


def test_certificate_tells_whose_it_is_and_for_whom() -> None:
    assert ca.consortium_name(PAIR.server) == ca.consortium_name(PAIR.authority) == "Glioma 联盟"
    assert ca.hosts_of(PAIR.server) == HOSTS
    assert ca.hosts_of(PAIR.authority) == ()


@pytest.mark.parametrize(
    ("left", "days"), [(timedelta(days=1), 1), (timedelta(hours=23), 0), (timedelta(seconds=-1), -1)]
)
def test_days_left_are_whole_days(left: timedelta, days: int) -> None:
    assert ca.days_left(PAIR.server, PAIR.server.not_valid_after_utc - left) == days


def p256() -> bytes:
    return pkcs8(ec.generate_private_key(ec.SECP256R1()))


def rsa_key() -> bytes:
    return pkcs8(rsa.generate_private_key(65537, 2048))


def protected() -> bytes:
    return ca.new_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def pkcs8(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (p256, "not a P-384 key"),
        (rsa_key, "not a P-384 key"),
        (protected, "not an unprotected"),
        (lambda: b"", "not an unprotected"),
        (lambda: ca.key_pem(PAIR.server_key)[:100], "damaged"),
    ],
)
def test_key_of_another_kind_is_refused(tmp_path: Path, content: Callable[[], bytes], said: str) -> None:
    path = tmp_path / "ca.key"
    path.write_bytes(content())
    with pytest.raises(IdentityError, match=said):
        ca.read_key(path)


def test_key_and_certificate_come_back_from_disk(tmp_path: Path) -> None:
    folder = PAIR.write(tmp_path)
    assert ca.read_certificate(folder / "ca.pem") == PAIR.authority
    assert ca.key_pem(ca.read_key(folder / "server.key")) == ca.key_pem(PAIR.server_key)
    with pytest.raises(ConfigError, match="no such key file"):
        ca.read_key(folder / "absent.key")
    with pytest.raises(IdentityError, match="cannot be read"):
        ca.read_certificate(folder)
    (folder / "ca.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(IdentityError, match="not a certificate"):
        ca.read_certificate(folder / "ca.pem")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("fed.example.org", "fed.example.org"),
        ("FED.Example.org", "fed.example.org"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[::1]", "::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_host_is_written_as_certificates_state_it(given: str, kept: str) -> None:
    assert ca.checked_host(given) == kept


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "a..b", "fed.example.org.", "-a.org", "a_b.org", "*.example.org", "https://a.org"),
        *("a.org:8443", "a.org/x", "bücher.example", "1.2.3", "1.2.3.400", "fe80::1%eth0", "224.0.0.1", "::"),
        *("0.0.0.0", "a" * 64 + ".org", ".".join(["a" * 60] * 5), "a b", "a\n"),  # noqa: S104
    ],
)
def test_what_nothing_could_connect_to_is_no_host(host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        ca.checked_host(host)


@given(st.one_of(st.text(max_size=40), st.ip_addresses().map(str), st.from_regex(r"[a-z0-9.:-]{1,20}")))
def test_accepted_host_fits_certificate_and_settings(text: str) -> None:
    try:
        host = ca.checked_host(text)
    except ConfigError:
        return
    assert ca.checked_host(host) == host
    assert SERVER_ADDRESS.fullmatch(f"[{host}]:1" if ":" in host else f"{host}:1")
    name = ca.issue_server(PAIR.authority, PAIR.authority_key, PAIR.server_key, (host,), days=1, now=NOW)
    assert ca.hosts_of(name) == (host,)
