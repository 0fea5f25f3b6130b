"""A knock at the server's door: is it there, is it the right one, does it know this site, is the clock right.

The same knock serves ``check``, the supervisor before it starts the node, and its words when the server
does not answer. It goes the way that the node goes: one TLS connection outwards, through ``HTTPS_PROXY``
where that is set.
"""

import base64
import re
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import sign_message

from fedglioma.bundle import build_bundle
from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError
from fedglioma.nodekey import fingerprint, public_bytes, read_private_key

HELLO = "/v1/fedglioma/hello"
TIMEOUT_S = 10.0
AHEAD_S = 5.0
BEHIND_S = 300.0
"""How far this computer's clock may be from the server's before Flower refuses its signatures."""


class Door(StrEnum):
    """What a knock found."""

    OPEN = "open"
    AWAY = "away"
    CLOCK = "clock"
    IDENTITY = "identity"
    REVOKED = "revoked"
    VERSION = "version"


RETRIED = frozenset({Door.AWAY, Door.CLOCK})
"""What mends itself, or is mended elsewhere: worth another try."""


@dataclass(frozen=True)
class Knock:
    """What a knock found, in words, and what to do about it."""

    door: Door
    detail: str
    remedy: str = ""
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """What a site needs to join: the server, its own key, and by whose certificate it knows the server.

    ``authority`` is None only where the settings ask for no TLS at all.
    """

    server: str
    key: ec.EllipticCurvePrivateKey
    authority: bytes | None
    trust: ssl.SSLContext | bool

    @property
    def scheme(self) -> str:
        """How the server is spoken to."""
        return "http" if self.authority is None else "https"


def require_joinable(config: SiteConfig) -> Way:
    """Return what joining needs; both the knock and the node ask, since settings change between them.

    Raises
    ------
    ConfigError
        The settings name no server, no certificate or no key, or the certificate cannot be read.
    IdentityError
        The site's own key cannot be used.
    """
    if config.server is None or config.key is None or (config.ca is None and not config.insecure):
        raise ConfigError(
            f"{config.site}.yaml: server, ca and key are needed to join; they come with the start-up kit"
        )
    key = read_private_key(config.key)
    if config.insecure or config.ca is None:
        return Way(config.server, key, None, True)
    try:
        authority = config.ca.read_bytes()
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.load_verify_locations(cadata=authority.decode("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config.ca}: is no readable PEM certificate ({type(error).__name__})") from None
    return Way(config.server, key, authority, trust)


def knock(config: SiteConfig) -> Knock:
    """Return what stands between this site and its server.

    Raises
    ------
    ConfigError, IdentityError
        As ``require_joinable``; or HTTPS_PROXY or the server's name cannot be used.
    """
    way = require_joinable(config)
    public = public_bytes(way.key)
    stamp = datetime.now(UTC).isoformat()
    headers = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode("ascii"),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(way.key, stamp.encode("ascii"))).decode(
            "ascii"
        ),
        TIMESTAMP_HEADER: stamp,
    }
    with _client(way) as client:
        asked = datetime.now(UTC)
        try:
            answer = client.post(f"{way.scheme}://{way.server}{HELLO}", headers=headers)
        except httpx.HTTPError as error:
            return _failed(error, way)
        except (httpx.InvalidURL, ValueError) as error:
            raise ConfigError(
                f"{config.site}.yaml: server: {way.server} is no host and port ({_words(error)})"
            ) from None
    skew = _skew(answer, asked)
    if skew is not None and not -BEHIND_S < skew < AHEAD_S:
        where = "ahead of" if skew > 0 else "behind"
        return Knock(
            Door.CLOCK,
            f"this computer's clock is {abs(skew):.0f} s {where} the server's",
            "set the clock (timedatectl set-ntp true); signatures are refused until then",
        )
    if answer.status_code not in (httpx.codes.OK, httpx.codes.NOT_FOUND):
        return Knock(
            Door.AWAY,
            f"something in front of {way.server} answers {answer.status_code}, not the server itself"
            f"{_through(way)}",
            "the server may be down for a moment; else ask the coordinator about the proxy before it",
        )
    if answer.status_code != httpx.codes.OK:
        return Knock(
            Door.IDENTITY,
            f"{way.server} does not know this site's key ({fingerprint(public)})",
            "send node.pub to the coordinator, or ask whether this is the right server",
        )
    return _judge(config, way, answer)


def _client(way: Way) -> httpx.Client:
    try:
        return httpx.Client(verify=way.trust, timeout=TIMEOUT_S)
    except (httpx.InvalidURL, ImportError, ValueError):
        # The library's words may hold a part of the password that stands in the URL.
        raise ConfigError(
            "HTTPS_PROXY, or another *_PROXY of the environment, is no usable URL; write "
            "http://proxy.example.org:3128, and special characters of a password as %40"
        ) from None


def _judge(config: SiteConfig, way: Way, answer: httpx.Response) -> Knock:
    told = _told(answer)
    if told.get("standing") == "revoked":
        return Knock(Door.REVOKED, "the coordinator has revoked this site's key", "ask for a new kit", told)
    if told.get("site") != config.site:
        return Knock(
            Door.IDENTITY,
            f"the server knows this key as {told.get('site')!r}, the settings say {config.site!r}",
            "use the key of this site's own kit",
            told,
        )
    if told.get("bundle") != build_bundle().digest:
        return Knock(
            Door.VERSION,
            f"the server runs fedglioma {told.get('version')} with another bundle than this site's",
            "install the version that the coordinator announced",
            told,
        )
    return Knock(Door.OPEN, f"{way.server} knows this site{_through(way)}", told=told)


def _told(answer: httpx.Response) -> dict[str, Any]:
    try:
        told = answer.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _through(way: Way) -> str:
    """Return the proxy that the connection goes through, in words and without a password."""
    named = getproxies()
    proxy = named.get(way.scheme) or named.get("all")
    if not proxy or proxy_bypass(way.server):
        return ""
    return f" through the proxy {urlsplit(proxy if '://' in proxy else f'//{proxy}').hostname}"


def _skew(answer: httpx.Response, asked: datetime) -> float | None:
    """Return how far this clock is ahead of the server's, in seconds."""
    middle = asked + (datetime.now(UTC) - asked) / 2
    try:
        skew = (middle - parsedate_to_datetime(answer.headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):  # none, none that can be read, or one without a zone
        return None
    return skew - min(max(skew, 0.0), 1.0)  # the header has whole seconds


def _failed(error: httpx.HTTPError, way: Way) -> Knock:
    found = _tls_problem(error)
    if isinstance(found, ssl.SSLCertVerificationError):
        return Knock(
            Door.IDENTITY,
            f"{way.server}: its certificate is not the consortium's ({found.verify_message})",
            "do not go on; ask the coordinator whether the server or its certificate changed",
        )
    if found is not None:
        return Knock(
            Door.IDENTITY,
            f"{way.server}: no TLS there ({found.reason or found})",
            "check server in the settings: host and port of the kit",
        )
    through = _through(way)
    why = "timed out" if isinstance(error, httpx.TimeoutException) else _words(error)
    # A proxy that cannot be reached is no ProxyError, so both are named wherever there is one.
    remedy = "is the server running, and does the firewall let this connection out?"
    if through:
        remedy = "is HTTPS_PROXY right, and is the server running?"
    return Knock(Door.AWAY, f"{way.server} does not answer{through} ({why})", remedy)


def _words(error: BaseException) -> str:
    words = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"^\[Errno -?\d+\] ", "", words)


def _tls_problem(error: BaseException) -> ssl.SSLError | None:
    """Return the TLS error at the bottom of an error, where there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError) and not isinstance(seen, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
