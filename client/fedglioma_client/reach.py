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

import httpx
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


def knock(config: SiteConfig) -> Knock:
    """Return what stands between this site and its server.

    Raises
    ------
    ConfigError
        The settings name no server, no certificate or no key.
    IdentityError
        The site's own key cannot be used.
    """
    if config.server is None or config.key is None or (config.ca is None and not config.insecure):
        raise ConfigError(
            f"{config.site}.yaml: server, ca and key are needed to join; they come with the start-up kit"
        )
    key = read_private_key(config.key)
    public = public_bytes(key)
    stamp = datetime.now(UTC).isoformat()
    headers = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public).decode("ascii"),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(key, stamp.encode("ascii"))).decode(
            "ascii"
        ),
        TIMESTAMP_HEADER: stamp,
    }
    scheme = "http" if config.insecure else "https"
    try:
        with httpx.Client(verify=_trust(config), timeout=TIMEOUT_S) as client:
            asked = datetime.now(UTC)
            answer = client.post(f"{scheme}://{config.server}{HELLO}", headers=headers)
    except httpx.HTTPError as error:
        return _failed(error, config)
    except (httpx.InvalidURL, ImportError, ValueError) as error:
        raise ConfigError(
            f"HTTPS_PROXY, or server in the settings: cannot be used ({_words(error)})"
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
            f"something in front of {config.server} answers {answer.status_code}, not the server itself",
            "the server may be down for a moment; else ask the coordinator about the proxy before it",
        )
    if answer.status_code != httpx.codes.OK:
        return Knock(
            Door.IDENTITY,
            f"{config.server} does not know this site's key ({fingerprint(public)})",
            "send node.pub to the coordinator, or ask whether this is the right server",
        )
    return _judge(config, answer)


def _judge(config: SiteConfig, answer: httpx.Response) -> Knock:
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
    return Knock(Door.OPEN, f"{config.server} knows this site", told=told)


def _told(answer: httpx.Response) -> dict[str, Any]:
    try:
        told = answer.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _trust(config: SiteConfig) -> ssl.SSLContext | bool:
    if config.insecure or config.ca is None:
        return True
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=config.ca.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError, ssl.SSLError) as error:
        raise ConfigError(f"{config.ca}: is no readable PEM certificate ({type(error).__name__})") from None
    return context


def _skew(answer: httpx.Response, asked: datetime) -> float | None:
    """Return how far this clock is ahead of the server's, in seconds."""
    middle = asked + (datetime.now(UTC) - asked) / 2
    try:
        skew = (middle - parsedate_to_datetime(answer.headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):  # none, none that can be read, or one without a zone
        return None
    return skew - min(max(skew, 0.0), 1.0)  # the header has whole seconds


def _failed(error: httpx.HTTPError, config: SiteConfig) -> Knock:
    found = _tls_problem(error)
    if isinstance(found, ssl.SSLCertVerificationError):
        return Knock(
            Door.IDENTITY,
            f"{config.server}: its certificate is not the consortium's ({found.verify_message})",
            "do not go on; ask the coordinator whether the server or its certificate changed",
        )
    if found is not None:
        return Knock(
            Door.IDENTITY,
            f"{config.server}: no TLS there ({found.reason or found})",
            "check server in the settings: host and port of the kit",
        )
    if isinstance(error, httpx.ProxyError):
        return Knock(
            Door.AWAY, f"the proxy does not connect to {config.server} ({error})", "check HTTPS_PROXY"
        )
    why = "timed out" if isinstance(error, httpx.TimeoutException) else _words(error)
    return Knock(
        Door.AWAY,
        f"{config.server} does not answer ({why})",
        "is the server running, and does the firewall let this connection out?",
    )


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
