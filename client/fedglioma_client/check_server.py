"""Checks of the way to the server: keys, certificate, reachability, clock, version."""

from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from fedglioma.config.site import SiteConfig
from fedglioma.errors import ConfigError, FedGliomaError, IdentityError, PolicyError
from fedglioma.nodekey import fingerprint, public_bytes, read_private_key
from fedglioma_client.machine import writable
from fedglioma_client.reach import Door, Knock, knock
from fedglioma_client.verdict import Verdict, doubtful, failed, fine

SOON_DAYS: Final = 30
_CODES: Final = {
    Door.IDENTITY: IdentityError.exit_code,
    Door.REVOKED: IdentityError.exit_code,
    Door.CLOCK: IdentityError.exit_code,
    Door.VERSION: PolicyError.exit_code,
    Door.AWAY: FedGliomaError.exit_code,
}


def check_way(config: SiteConfig) -> list[Verdict]:
    """Return what stands between this site and its server; one line where the settings name none."""
    if config.server is None:
        told = "none named: for simulations on one machine; joining needs server, ca and key of the kit"
        return [fine("server", told)]
    verdicts = [_state(config), _key(config)]
    if not config.insecure:
        verdicts.append(_authority(config))
    if not any(verdict.exit_code for verdict in verdicts):
        verdicts += _server(config)
    return verdicts


def _state(config: SiteConfig) -> Verdict:
    """Return whether the site can keep what it remembers; nothing is made where it is not there yet."""
    try:
        writable(config.state)
    except OSError as error:
        return failed(
            "state",
            f"{config.state}: cannot be written ({error.strerror or error})",
            "give this user the right to write, or set another state",
            exit_code=ConfigError.exit_code,
        )
    return fine("state", f"{config.state}: can be written")


def _key(config: SiteConfig) -> Verdict:
    if config.key is None:
        remedy = "take node.key from the kit, or make one with keygen"
        return failed("key", "the settings name no key", remedy, exit_code=ConfigError.exit_code)
    try:
        public = public_bytes(read_private_key(config.key))
    except FedGliomaError as error:
        return failed("key", str(error), "see docs/provision.md", exit_code=error.exit_code)
    return fine("key", f"{config.key}: {fingerprint(public)}")


def _authority(config: SiteConfig) -> Verdict:
    if config.ca is None:
        remedy = "take ca.pem from the kit"
        return failed("ca", "the settings name no certificate", remedy, exit_code=ConfigError.exit_code)
    try:
        certificate = x509.load_pem_x509_certificate(config.ca.read_bytes())
    except (OSError, ValueError):
        return failed(
            "ca",
            f"{config.ca}: is no readable certificate",
            "take ca.pem from the kit again",
            exit_code=IdentityError.exit_code,
        )
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    ends = f"{config.ca}: ends {certificate.not_valid_after_utc:%Y-%m-%d}"
    if days < 0:
        return failed("ca", ends, "ask the coordinator for a new kit", exit_code=IdentityError.exit_code)
    if days < SOON_DAYS:
        return doubtful("ca", f"{ends}, in {days} days", "ask the coordinator for a new kit")
    return fine("ca", ends)


def _server(config: SiteConfig) -> list[Verdict]:
    try:
        found = knock(config)
    except FedGliomaError as error:
        return [failed("server", str(error), "correct the settings", exit_code=error.exit_code)]
    if found.door is not Door.OPEN:
        subject = "clock" if found.door is Door.CLOCK else "server"
        return [failed(subject, found.detail, found.remedy, exit_code=_CODES[found.door])]
    return [fine("server", f"{found.detail} (run {_run(found)})"), fine("clock", "as the server's")]


def _run(found: Knock) -> str:
    return str(found.told.get("run", "not told"))
