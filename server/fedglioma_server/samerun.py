"""What a run begins with, and what makes two starts one run: the same settings, the same patients."""

import hashlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from fedglioma.config.run import RunConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError
from fedglioma.payload import packed_bytes
from fedglioma.training.learner import layout_of, parameter_count
from fedglioma_server.records import DataIssue, RunRecord, SplitCount
from fedglioma_server.runfolder import RunFolder, now


class OtherRun(ConfigError):
    """A folder holds a run of other settings, patients or divisions; nothing in it was touched."""


def new_record(
    folder: RunFolder,
    settings: RunConfig,
    *,
    engine: str,
    command: str,
    cases: Sequence[PreparedCase],
    cohorts: Sequence[str],
    issues: Sequence[DataIssue],
    synthetic: bool,
    splits: Mapping[str, SplitCount] | None = None,
) -> RunRecord:
    """Return the record of a run that begins now; ``cases`` are all that the server knows of."""
    return RunRecord(
        run_id=folder.path.resolve().name,
        created=now(),
        engine=engine,
        command=command,
        synthetic=synthetic,
        versions={
            "fedglioma": version("fedglioma"),
            "flwr": version("flwr"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
        settings=settings,
        cohorts=list(cohorts),
        data_digest=data_digest(cases),
        parameters=parameter_count(settings),
        payload_bytes=packed_bytes(settings.payload, layout_of(settings).sizes),
        splits=dict(splits or {}),
        issues=list(issues),
    )


def data_digest(cases: Sequence[PreparedCase]) -> str:
    """Return sha256 over the digests, masks, labels and sites of prepared cases, in any order."""
    lines = sorted(
        f"{item.digest} {item.case.genotype.labels()} {item.case.site}"
        + (f" {item.mask_digest}" if item.mask_digest else "")
        for item in cases
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def require_same_settings(folder: RunFolder, asked: RunConfig) -> None:
    """Raise ``OtherRun`` where the folder holds a run of other settings, and name the first of them."""
    if not folder.exists():
        return
    there = folder.read().settings
    for field in RunConfig.model_fields:
        old, new = getattr(there, field), getattr(asked, field)
        if old != new:
            raise other_run(folder, f"{field} {old}", f"{new} is")


def other_run(folder: RunFolder, holds: str, asked: str) -> OtherRun:
    """Return the refusal to continue another run."""
    instead = "name another --out"
    if not any(line.round > 0 for line in folder.rounds()):
        instead = f"no round of it is complete: remove the folder, or {instead}"
    return OtherRun(f"{folder.path}: holds a run with {holds}, {asked} asked for; {instead}")


def command_line() -> str:
    """Return the command that was typed, without this machine's folders.

    A path below the working folder stays as it is; of any other only the last part is kept.
    """
    words = [Path(sys.argv[0]).name]
    for word in sys.argv[1:]:
        elsewhere = Path(word).is_absolute() or ".." in Path(word).parts
        words.append(Path(word).name if elsewhere else word)
    return shlex.join(words)
