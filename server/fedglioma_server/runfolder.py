"""The run folder: where everything of a run lies, and who may write it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedglioma.errors import ConfigError
from fedglioma.newfile import PART
from fedglioma_server.records import RoundRecord, RunRecord, read_json, read_rounds, write_json


@dataclass(frozen=True)
class RunFolder:
    """Paths inside ``runs/<run id>/`` (DESIGN section 4) and its run record."""

    path: Path

    @property
    def record_file(self) -> Path:
        """run.json."""
        return self.path / "run.json"

    @property
    def rounds_file(self) -> Path:
        """rounds.jsonl."""
        return self.path / "rounds.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the weights per round."""
        return self.path / "checkpoints"

    @property
    def updates(self) -> Path:
        """Folder of the sites' updates per round, where they are kept."""
        return self.path / "updates"

    @property
    def model(self) -> Path:
        """Folder of the selected model."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        """Folder of metrics.json, predictions.csv and figures."""
        return self.path / "evaluation"

    @property
    def survival(self) -> Path:
        """Folder of the survival analysis."""
        return self.path / "survival"

    @property
    def work(self) -> Path:
        """Folder of what names patients: the plan, the exclusions. It is for this machine only."""
        return self.path / "work"

    @property
    def report(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.record_file.exists()

    def read(self) -> RunRecord:
        """Return the run record."""
        return read_json(self.record_file, RunRecord, "run's record")

    def key(self) -> str:
        """Return what tells this run from every other, also from one of the same name."""
        return self.read().key

    def rounds(self) -> list[RoundRecord]:
        """Return the rounds on record."""
        return read_rounds(self.rounds_file)

    def update(self, **changes: object) -> RunRecord:
        """Rewrite the run record with some fields changed, and return it."""
        record = self.read().model_copy(update=changes)
        write_json(self.record_file, RunRecord.model_validate(record.model_dump()))
        return record

    def require_new_or_ours(self) -> None:
        """Refuse a folder that holds something else.

        Raises
        ------
        ConfigError
            The folder is a file, or holds files but no run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; name a folder for the run")
        if self.path.is_dir() and not self.exists():
            ours = ("work", "cohort")
            others = [e.name for e in self.path.iterdir() if e.name not in ours and not e.match(PART)]
            if others:
                raise ConfigError(f"{self.path}: holds {others[0]} but no run; name a new or empty folder")

    def sweep(self) -> None:
        """Remove what a writer that was killed left behind."""
        for part in self.path.rglob(PART):
            part.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of this run's folder until the block ends, or this process does.

        ``work`` is for its owner alone from then on.

        Raises
        ------
        ConfigError
            Another process is running here.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        self.work.chmod(0o700)
        handle = os.open(self.work, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.path}: another process is running here; wait for it, or name another --out"
                ) from None
            yield
        finally:
            os.close(handle)


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
