"""How a run ended, written into its run.json whatever the cause."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedglioma.errors import FedGliomaError
from fedglioma_server.heldout import Stopped
from fedglioma_server.runfolder import RunFolder


@contextmanager
def recorded(folder: RunFolder) -> Iterator[None]:
    """Mark a run as running, and as interrupted or failed where the block ends so."""
    folder.update(status="running", failure=None)
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        folder.update(status="interrupted")
        raise
    except Exception as error:
        folder.update(status="failed", failure=reason(error, folder))
        raise


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
