"""The ``start``, ``status`` and ``stop`` commands: a server's settings in, words and data out."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedglioma.config.run import RunConfig
from fedglioma.config.server import ServerConfig, load_server_config
from fedglioma.console import human, progress
from fedglioma.errors import ConfigError
from fedglioma.machine import return_freed_memory
from fedglioma.training.learner import layout_of, parameter_count
from fedglioma_server.device import usable_device
from fedglioma_server.evaluation_cohort import EvaluationCohort
from fedglioma_server.heldout import Stopped
from fedglioma_server.records import RunRecord, write_json
from fedglioma_server.runfolder import RunFolder, now
from fedglioma_server.runstatus import recorded
from fedglioma_server.samerun import command_line, data_digest, require_same_settings
from fedglioma_server.serve import Server

Result = tuple[dict[str, Any], str]

PLAIN = "NO TLS: everything travels readable for anyone on the way; for tests on one machine only"


def start(path: Path, changes: Mapping[str, Any], given: Mapping[str, Any]) -> Result:
    """Run the server until the run is finished or somebody ends it, and return what came out.

    Parameters
    ----------
    path : Path
        server.yaml.
    changes, given : mapping
        Settings of the server and of the run, from the command line, that replace those of the file.

    Raises
    ------
    FedGliomaError
        As ``Server.run``; what was finished is kept, and the same command continues it.
    """
    return_freed_memory()
    config = with_changes(load_server_config(path), changes, given)
    folder = RunFolder(config.out)
    usable_device(config.device, f"{path}: device:")
    folder.require_new_or_ours()
    require_same_settings(folder, config.run)
    if folder.exists():
        with folder.locked():  # a second start says so, before it finds its port taken by the first
            pass
    Server(config, EvaluationCohort()).check()
    if config.insecure:
        human().print(f"[bold red]{PLAIN}[/]")
    with folder.locked():
        folder.sweep()
        cohort = _evaluation(config)
        _write_record(folder, config, cohort)
        if folder.read().status == "completed":
            return _result(folder)
        try:
            with recorded(folder):
                Server(config, cohort).run()
        except Stopped as stopped:
            return _stopped(folder, stopped)
    return _result(folder)


def _evaluation(config: ServerConfig) -> EvaluationCohort:
    if not config.cohorts:
        return EvaluationCohort()
    from fedglioma_server.read_evaluation import read_evaluation  # imaging libraries: only where needed

    with progress("prepare", unit="cases") as shown:
        return read_evaluation(
            config.cohorts, config.run, config.cache, workers=config.workers, progress=shown
        )


def with_changes(config: ServerConfig, changes: Mapping[str, Any], given: Mapping[str, Any]) -> ServerConfig:
    """Return settings with some replaced, checked as a whole.

    Raises
    ------
    ConfigError
        A value is not allowed.
    """
    run = RunConfig.from_mapping({**config.run.model_dump(), **given}, "settings") if given else config.run
    replaced = {name: value for name, value in changes.items() if value is not None}
    return config.model_copy(update={**replaced, "run": run})


def _write_record(folder: RunFolder, config: ServerConfig, cohort: EvaluationCohort) -> None:
    digest = data_digest([*cohort.selection, *cohort.report])
    if folder.exists():
        if folder.read().data_digest != digest:
            raise ConfigError(
                f"{folder.path}: was begun with other evaluation patients; name the same cohorts, "
                "or another out"
            )
        return
    record = RunRecord(
        run_id=folder.path.resolve().name,
        created=now(),
        engine="deployed",
        command=command_line(),
        synthetic=cohort.synthetic,
        versions={
            "fedglioma": version("fedglioma"),
            "flwr": version("flwr"),
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        settings=config.run,
        cohorts=list(cohort.names),
        data_digest=digest,
        parameters=parameter_count(config.run),
        payload_bytes=_payload_bytes(config.run),
        splits={},
        issues=list(cohort.issues),
    )
    write_json(folder.record_file, record)
    folder.work.mkdir(parents=True, exist_ok=True)
    folder.work.chmod(0o700)
    if cohort.names:
        from fedglioma_server.gather import write_findings  # reads images: only where there are any

        write_findings(folder.work / "findings.csv", cohort.exclusions, cohort.warnings)


def _payload_bytes(settings: RunConfig) -> int:
    return layout_of(settings).payload_bytes


def _result(folder: RunFolder) -> Result:
    from fedglioma_server.run_result import run_result  # statistics: only at the end

    return run_result(folder.read(), folder)


def _stopped(folder: RunFolder, stopped: Stopped) -> Result:
    data = {"run_id": folder.path.name, "status": "interrupted", "complete": stopped.number}
    return data, f"run {folder.path.name}: {stopped}; 'fedglioma-server start' continues it"
