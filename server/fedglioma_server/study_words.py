"""A study's names and figures as people read them."""

from fedglioma.case import TASK_TITLES, Task
from fedglioma.metrics.bootstrap import Measure
from fedglioma_server.study_table import Entry, Line, StudyResult

MEASURE_TITLES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "dice": "Dice",
}
PROTOCOL_TITLES = {
    "federated": "federated",
    "centralised": "all data in one place",
    "local": "each hospital alone",
    "finetuned": "federated, then each alone",
}
DIVISION_TITLES = {
    "split": "one division into training, selection and report",
    "kfold": "{folds} folds, every patient reported once",
    "sites": "one hospital left out at a time, {folds} in all",
    "file": "{folds} divisions from a file",
}
DASH = "-"


def measure_title(name: str) -> str:
    """Return ``IDH AUC`` of ``idh.auc``."""
    task, _, measure = name.partition(".")
    return f"{TASK_TITLES[Task(task)]} {MEASURE_TITLES[measure]}"


def row_title(line: Line, result: StudyResult) -> str:
    """Return a row's name: its arm, its protocol where the study has several, or both."""
    trained = [other for other in result.lines if other.protocol]
    if not line.protocol or len({other.protocol for other in trained}) == 1:
        return line.arm
    if len({other.arm for other in trained}) == 1:
        return PROTOCOL_TITLES[line.protocol]
    return f"{line.arm}, {PROTOCOL_TITLES[line.protocol]}"


def interval_text(measure: Measure, *, signed: bool = False) -> str:
    """Return ``0.86 [0.78, 0.93]``, with signs where it is a difference; a dash where undefined."""
    if measure.value is None:
        return DASH
    form = "{:+.2f}" if signed else "{:.2f}"
    if measure.low is None or measure.high is None:
        return form.format(measure.value)
    return f"{form.format(measure.value)} [{form.format(measure.low)}, {form.format(measure.high)}]"


def p_text(p: float | None) -> str:
    """Return a p-value as papers print it."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compared_text(entry: Entry) -> str:
    """Return a row's difference from the row that it is compared with, and its p; empty for that row."""
    if entry.comparison is None:
        return ""
    difference = interval_text(entry.comparison.difference, signed=True)
    return f"{difference}, p {p_text(entry.p_adjusted)}"


def caution_text(result: StudyResult) -> str:
    """Return what a table's figures mean, and what they do not say."""
    return CAUTION + (_SEEDS if result.seeds > 1 else _ONE_SEED)


def seeds_text(entry: Entry) -> str:
    """Return ``0.81 to 0.88``, the smallest and the largest value of a seed; a dash where there is none."""
    known = [value for value in entry.by_seed if value is not None]
    return f"{min(known):.2f} to {max(known):.2f}" if known else DASH


def divisions_text(result: StudyResult) -> str:
    """Return how patients were divided."""
    words = DIVISION_TITLES[result.divisions].format(folds=result.folds)
    return f"{words}; {result.seeds} seed{'s' * (result.seeds != 1)}"


CAUTION = (
    "Values are means over folds and seeds. In brackets: 95 % interval from resampling patients. Differences "
    "are paired, on the same patients; p is two-sided, from swapping the two rows' predictions at random, "
    "adjusted for the number of rows (Holm). Intervals and p hold for the trained networks as they are, on "
    "other patients; they do not say how much another training would change, which "
)
_SEEDS = "the smallest and the largest mean over folds of a seed show."
_ONE_SEED = "one seed cannot show."
SPENT = (
    "Epsilon is that of one run, for a patient or a hospital as its arm says; on real patients all runs of "
    "the study add up."
)
OTHERS = "figures of other patients, from a paper: beside these to be read, not to be compared by number"
