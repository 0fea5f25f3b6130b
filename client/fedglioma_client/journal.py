"""The site's audit log as the worker writes it."""

from pathlib import Path

from fedglioma.audit import AuditLog, Value, shortened
from fedglioma.chain import AUDIT_FILE
from fedglioma.config.site import SiteConfig
from fedglioma_client.worker import Journal


def audit_file(config: SiteConfig) -> Path:
    """Return where a site's audit log lies."""
    return config.state / AUDIT_FILE


def open_journal(config: SiteConfig) -> Journal:
    """Return what records a step in the site's audit log; words are cut, nothing is left out silently."""
    log = AuditLog(audit_file(config))

    def record(event: str, **facts: Value) -> None:
        log.append(event, **{name: shortened(v) if isinstance(v, str) else v for name, v in facts.items()})

    return record
