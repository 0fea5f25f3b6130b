"""The ``audit verify`` command: a log, or a folder that holds one, and what its chain shows."""

from pathlib import Path

from fedglioma.chain import AUDIT_FILE
from fedglioma.verification import Verification, verify


def verify_log(path: Path, head: str | None) -> tuple[Path, Verification]:
    """Return the log that was meant and what its chain shows.

    Parameters
    ----------
    path : Path
        A run folder, a site's state folder, or the log itself.
    head : str or None
        A head kept elsewhere, to compare with.

    Raises
    ------
    ConfigError
        There is no log, it cannot be read, or the head is no digest.
    """
    log = path / AUDIT_FILE if path.is_dir() else path
    return log, verify(log, head=head)
