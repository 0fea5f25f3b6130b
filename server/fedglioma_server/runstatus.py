"""How a run ended, written into its run.json whatever the cause."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fedglioma.errors import FedGliomaError
from fedglioma_server.runfolder import RunFolder

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A run ended because somebody asked for it; its complete rounds are kept and it can be continued."""

    def __init__(self) -> None:
        super().__init__("somebody asked for the end")


@contextmanager
def recorded(folder: RunFolder) -> Iterator[None]:
    """Mark a run as running, and as interrupted or failed where the block ends so."""
    folder.update(status="running", failure=None)
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        _mark(folder, status="interrupted")
        raise
    except Exception as error:
        _mark(folder, status="failed", failure=reason(error, folder))
        raise


def _mark(folder: RunFolder, **changes: str) -> None:
    """Change the record if that is possible: the end itself has another cause, which must be told."""
    try:
        folder.update(**changes)
    except (FedGliomaError, OSError) as error:
        logger.error("%s: cannot be brought up to date: %s", folder.record_file, error)


def reason(error: Exception, folder: RunFolder) -> str:
    """Return why a run failed, in one line and without this machine's folders."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if not isinstance(error, FedGliomaError):
        return f"a defect of fedglioma ({type(error).__name__})"
    return (
        str(error)
        .replace(str(folder.path.resolve()), folder.path.name)
        .replace(str(folder.path), folder.path.name)
    )
