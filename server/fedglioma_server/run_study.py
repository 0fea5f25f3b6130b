"""``simulate --study``: from a study's file and what was typed to its table, in words and as data."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedglioma.config.run import run_table
from fedglioma.console import human, progress
from fedglioma.errors import ConfigError, FedGliomaError
from fedglioma_server import simulate
from fedglioma_server.device import usable_device
from fedglioma_server.run_simulation import Request, gather_for, scratch, synthetic_settings
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.samerun import command_line
from fedglioma_server.study_cells import Cell
from fedglioma_server.study_file import Study, read_study
from fedglioma_server.study_report import summary_text, write_study_report
from fedglioma_server.study_run import (
    StudyRun,
    prepare_study,
    require_same_study,
    require_trainable_study,
    run_study,
)
from fedglioma_server.study_table import RESULTS

STUDIES = Path("studies")
OURS = ("cohort", "cache", "runs", "figures", RESULTS, "report.html", "table.md", "table.csv")

Result = tuple[dict[str, Any], str, FedGliomaError | None]


def run(request: Request, path: Path, size: str | None, jobs: int = 1) -> Result:
    """Run what is missing of a study and return its table; an error where some of its runs failed.

    ``jobs`` runs are made at a time; where no threads were asked for, they share the processor's cores.
    """
    study = read_study(path, size)
    if jobs > 1 and not request.threads:
        request = replace(request, threads=max(1, simulate.default_threads() // jobs))
    out = request.out or STUDIES / path.stem
    _require_ours(out)
    with _locked(out):
        return _run(request, study, out, jobs)


def _run(request: Request, study: Study, out: Path, jobs: int) -> Result:
    asked = replace(_study_run(request, study, out, out), jobs=jobs)
    require_trainable_study(asked)
    require_same_study(asked)
    with progress("prepare", unit="cases") as shown:
        prepared = prepare_study(asked, shown)
    with progress("study", unit="runs") as shown:

        def told(cell: Cell, number: int, total: int) -> None:
            human().print(f"run {number} of {total}: {cell.words}", markup=False, highlight=False)

        result = run_study(asked, prepared, told, shown)
    report = write_study_report(out)
    text = f"{summary_text(result)}\nresearch use only, not a medical device\nreport: {report}"
    data = {"folder": str(out), "report": str(report), "result": result.model_dump(mode="json")}
    failed = len(result.failed)
    error = None
    if failed:
        error = FedGliomaError(
            f"{failed} of {result.runs} runs failed and their rows are left out; "
            "the same command tries them again"
        )
    return data, text, error


def dry(request: Request, path: Path, size: str | None) -> tuple[dict[str, Any], str]:
    """Return what a study would run, and leave nothing behind."""
    study = read_study(path, size)
    with scratch() as folder:
        prepared = _study_run(request, study, request.out or STUDIES / path.stem, folder)
        require_trainable_study(prepared)
        cells = prepared.cells
    lines = [
        f"dry run: nothing is trained; {study.title} ({study.size} size)",
        f"{len(prepared.gathering.cases)} usable cases of "
        f"{', '.join(h.config.site for h in prepared.gathering.hospitals)}",
        f"{len(cells)} runs",
        *(f"  {cell.words}: {cell.settings.model}, {cell.settings.rounds} rounds" for cell in cells),
    ]
    data = {
        "title": study.title,
        "size": study.size,
        "cases": len(prepared.gathering.cases),
        "runs": [
            {
                "arm": cell.arm.name,
                "protocol": cell.protocol,
                "seed": cell.seed,
                "fold": cell.division.name,
                "site": cell.site,
                "settings": cell.settings.model_dump(mode="json"),
            }
            for cell in cells
        ],
    }
    return data, "\n".join(lines)


def _study_run(request: Request, study: Study, out: Path, made_in: Path) -> StudyRun:
    usable_device(request.device)
    if request.engine != simulate.Engine.INLINE:
        raise ConfigError(f"--engine {request.engine}: a study runs inline; leave it out")
    if request.cohorts or request.synthetic is not None:
        asked = request
    else:
        data = study.data
        if not data.cohorts and data.synthetic is None and request.sites is None and data.sites is None:
            raise ConfigError("the study names no patients: give --cohort DIR or --synthetic N")
        asked = replace(
            request,
            cohorts=data.cohorts,
            synthetic=data.synthetic,
            synthetic_size=data.synthetic_size,
            synthetic_overlap=data.synthetic_overlap,
            sites=request.sites or data.sites,
        )
    defaults = {} if asked.synthetic is None else synthetic_settings(asked.synthetic_size)
    typed: Mapping[str, Any] = {} if request.config is None else run_table(request.config)
    study = study.model_copy(update={"run": {**defaults, **study.run}})
    given = {**typed, **request.given}
    first = study.settings(study.arms[0], study.seeds[0], given)
    cache = (request.cache or out / "cache").resolve()
    return StudyRun(
        study=study,
        gathering=gather_for(replace(asked, cache=cache), RunFolder(made_in), first),
        out=out,
        cache=cache,
        given=given,
        workers=request.workers or simulate.default_threads(),
        threads=request.threads or simulate.default_threads(),
        device=request.device,
        command=command_line(),
    )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second study out of the folder until the block ends, or this process does."""
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out}: a study is running here; wait for it, or name another --out") from None
        yield
    finally:
        os.close(handle)


def _require_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; name a folder for the study")
    if out.is_dir():
        others = sorted(entry.name for entry in out.iterdir() if entry.name not in OURS)
        if others:
            raise ConfigError(f"{out}: holds {others[0]}, which is of no study; name a new or empty folder")
