"""The ``survival`` command: a table in, curves, tests and figures out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedglioma.data.cohort import is_synthetic
from fedglioma.errors import ConfigError
from fedglioma.survival.analysis import analyse
from fedglioma.survival.columns import TimeUnit
from fedglioma.survival.table import read_table
from fedglioma_server.survival_report import survival_text, write_survival


def analyse_file(
    table: Path,
    *,
    time: str | None,
    event: str | None,
    groups: Sequence[str],
    cohort: str | None,
    unit: str | None,
    out: Path | None,
) -> tuple[dict[str, Any], str]:
    """Return the analysis as data and as text; with ``out``, write results, curves and figures there.

    Raises
    ------
    ConfigError
        The table or a column is not there, or the columns cannot be guessed.
    DataError
        No row is usable.
    """
    synthetic = table.is_dir() and is_synthetic(table)
    read = read_table(
        table,
        time=time,
        event=event,
        groups=groups,
        cohort=cohort,
        unit=None if unit is None else _unit(unit),
    )
    results = analyse(read, synthetic=synthetic)
    text = survival_text(results)
    data: dict[str, Any] = {"results": results.model_dump(mode="json")}
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out}: is a file; name a folder")
        files = write_survival(results, out, draw=True)
        data["files"] = [str(path) for path in files]
        text += f"\nwritten to {out}: {', '.join(path.name for path in files)}\n"
    return data, text


def _unit(name: str) -> TimeUnit:
    try:
        return TimeUnit(name)
    except ValueError:
        raise ConfigError(f"--unit {name}: choose {' or '.join(TimeUnit)}") from None
