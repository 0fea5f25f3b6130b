"""What a finished run says at its end, in words and as data; the same for a simulation and a server.

A server's lines are kept in logs: they have no figure of few patients (``small_cells.py``); the run folder's
``evaluation/metrics.json`` has all of them.
"""

from typing import Any

from fedglioma.counts import PASSED_ON, shown
from fedglioma.metrics.small_cells import passed_on
from fedglioma.metrics.tables import Evaluation
from fedglioma_server.records import PrivacyRecord, RunRecord, read_json
from fedglioma_server.run_evaluation import overall_lines
from fedglioma_server.runfolder import RunFolder


def run_result(record: RunRecord, folder: RunFolder) -> tuple[dict[str, Any], str]:
    """Return the result of a completed run.

    Raises
    ------
    ConfigError
        The folder holds no evaluation.
    """
    evaluation = passed_on(read_json(folder.evaluation / "metrics.json", Evaluation))
    privacy = read_json(folder.path / "privacy.json", PrivacyRecord)
    data = {
        "run_id": record.run_id,
        "folder": str(folder.path),
        "report": str(folder.report),
        "model": str(folder.model),
        "synthetic": record.synthetic,
        "differentially_private": privacy.differentially_private,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "evaluation": evaluation.model_dump(mode="json", exclude={"by_site", "by_modalities", "who"}),
    }
    done, planned = max((line.round for line in folder.rounds()), default=0), record.settings.rounds
    rounds = f"{done} rounds" if done == planned else f"{done} of {planned} rounds, ended early,"
    lines = [f"run {record.run_id}: {rounds} over {len(record.sites)} sites"]
    if record.synthetic:
        lines.append("SYNTHETIC DATA: made-up patients, nothing here is clinical evidence")
    lines.append(f"held out for the report: {shown(evaluation.n_cases)} cases")
    lines += overall_lines(evaluation)
    if any(found.withheld for found in evaluation.overall.values()):
        lines.append(f"figures of fewer than {PASSED_ON} patients of a status: evaluation/metrics.json alone")
    lines += [
        f"{_privacy_line(privacy)}; research use only, not a medical device",
        f"report: {folder.report}",
    ]
    return data, "\n".join(lines)


def _privacy_line(privacy: PrivacyRecord) -> str:
    """Return how private the run was, in few words."""
    masked = "; updates summed under masks" if privacy.secure_aggregation else ""
    if privacy.epsilon is None or privacy.delta is None:
        return f"not differentially private{masked}"
    return (
        f"differentially private: epsilon {privacy.epsilon:.3g} at delta {privacy.delta:g} for a "
        f"{privacy.unit}{masked}"
    )
