"""What makes two starts one run: the same settings, the same patients; and the command as it was typed."""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from fedglioma.config.run import RunConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError
from fedglioma_server.runfolder import RunFolder


def data_digest(cases: Sequence[PreparedCase]) -> str:
    """Return sha256 over the digests, labels and sites of prepared cases, in any order."""
    lines = sorted(f"{item.digest} {item.case.genotype.labels()} {item.case.site}" for item in cases)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_same_settings(folder: RunFolder, asked: RunConfig) -> None:
    """Raise ``ConfigError`` where the folder holds a run of other settings, and name the first of them."""
    if not folder.exists():
        return
    there = folder.read().settings
    for field in RunConfig.model_fields:
        old, new = getattr(there, field), getattr(asked, field)
        if old != new:
            raise other_run(folder, f"{field} {old}", f"{new} is")


def other_run(folder: RunFolder, holds: str, asked: str) -> ConfigError:
    """Return the refusal to continue another run."""
    return ConfigError(f"{folder.path}: holds a run with {holds}, {asked} asked for; name another --out")


def command_line() -> str:
    """Return the command that was typed, without this machine's folders.

    A path below the working folder stays as it is; of any other only the last part is kept.
    """
    words = [Path(sys.argv[0]).name]
    for word in sys.argv[1:]:
        elsewhere = Path(word).is_absolute() or ".." in Path(word).parts
        words.append(Path(word).name if elsewhere else word)
    return shlex.join(words)
