"""The ``audit`` commands: what a log's chain shows, and a run's weights computed again."""

from pathlib import Path
from typing import Any

from fedglioma.chain import AUDIT_FILE
from fedglioma.console import Progress, silent
from fedglioma.errors import ConfigError
from fedglioma.verification import Verification, verify
from fedglioma_server.recompute import recompute
from fedglioma_server.runfolder import RunFolder


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


def recompute_rounds(
    run: Path, number: int | None, progress: Progress = silent
) -> tuple[dict[str, Any], str]:
    """Return the digests of a run's weights, computed again from the kept updates.

    Raises
    ------
    ConfigError
        There is no such run, or its updates were not kept.
    ProtocolError
        A round comes out otherwise than recorded, or a file is not the one on record.
    """
    rounds = [line.round for line in RunFolder(run).rounds() if line.round > 0]
    wanted = rounds if number is None else [number]
    if not wanted:
        raise ConfigError(f"{run}: no such run folder, or no round is complete")
    digests = {}
    for done, each in enumerate(wanted):
        progress(done, len(wanted))
        digests[each] = recompute(run, each)
    progress(len(wanted), len(wanted))
    lines = [f"round {each}: {digest}, as recorded" for each, digest in digests.items()]
    return {"run": run.name, "weights": {str(k): v for k, v in digests.items()}}, "\n".join(lines)
