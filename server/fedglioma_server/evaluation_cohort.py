"""The coordinating centre's own labelled patients, who choose the model and who are reported on."""

from dataclasses import dataclass

from fedglioma.case import Finding
from fedglioma.data.prepared import PreparedCase
from fedglioma_server.records import DataIssue


@dataclass(frozen=True)
class EvaluationCohort:
    """Prepared held-out cases; none where the centre has no patients of its own."""

    selection: tuple[PreparedCase, ...] = ()
    report: tuple[PreparedCase, ...] = ()
    exclusions: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    issues: tuple[DataIssue, ...] = ()
    names: tuple[str, ...] = ()
    synthetic: bool = False
