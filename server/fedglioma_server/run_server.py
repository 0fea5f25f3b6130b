"""The ``start``, ``status`` and ``stop`` commands: a server's settings in, words and data out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedglioma.config.server import ServerConfig, load_server_config
from fedglioma.console import PLAIN, human, progress
from fedglioma.errors import ConfigError
from fedglioma.machine import return_freed_memory
from fedglioma_server.device import usable_device
from fedglioma_server.evaluation_cohort import EvaluationCohort
from fedglioma_server.records import write_json
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.runstatus import Stopped, recorded
from fedglioma_server.samerun import command_line, new_record, require_same_settings
from fedglioma_server.serve import Server
from fedglioma_server.spending import with_noise

Result = tuple[dict[str, Any], str]


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
    read = load_server_config(path, changes, given)
    config = read.model_copy(update={"run": with_noise(read.run)})
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
        except Stopped:
            return _stopped(folder)
    return _result(folder)


def _evaluation(config: ServerConfig) -> EvaluationCohort:
    if not config.cohorts:
        return EvaluationCohort()
    from fedglioma_server.read_evaluation import read_evaluation  # imaging libraries: only where needed

    with progress("prepare", unit="cases") as shown:
        return read_evaluation(
            config.cohorts, config.run, config.cache, workers=config.workers, progress=shown
        )


def _write_record(folder: RunFolder, config: ServerConfig, cohort: EvaluationCohort) -> None:
    record = new_record(
        folder,
        config.run,
        engine="deployed",
        command=command_line(),
        cases=[*cohort.selection, *cohort.report],
        cohorts=cohort.names,
        issues=cohort.issues,
        synthetic=cohort.synthetic,
    )
    if folder.exists():
        if folder.read().data_digest != record.data_digest:
            raise ConfigError(
                f"{folder.path}: was begun with other evaluation patients; name the same cohorts, "
                "or another out"
            )
        return
    if cohort.names:
        from fedglioma_server.gather import write_findings  # reads images: only where there are any

        write_findings(folder.work / "findings.csv", cohort.exclusions, cohort.warnings)
    write_json(folder.record_file, record)  # last: a folder with a record has all the rest


def _result(folder: RunFolder) -> Result:
    from fedglioma_server.run_result import run_result  # statistics: only at the end

    return run_result(folder.read(), folder)


def _stopped(folder: RunFolder) -> Result:
    complete = max((line.round for line in folder.rounds()), default=0)
    data = {"run_id": folder.path.name, "status": "interrupted", "complete": complete}
    return data, (
        f"run {folder.path.name}: stopped after round {complete}; 'fedglioma-server start' continues it"
    )
