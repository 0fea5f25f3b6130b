"""The first screen of the report: what a reader must know, what was done, the result per marker."""

from dataclasses import dataclass

from fedglioma.case import CLASS_TITLES, GENE_TITLES, GENES, Gene
from fedglioma.metrics.genotype import GeneMetrics
from fedglioma.metrics.small_cells import outlined, told
from fedglioma.metrics.tables import Evaluation
from fedglioma_server import report_linkage as duplicates
from fedglioma_server import report_text as words
from fedglioma_server.network_words import TITLES, what_it_reads
from fedglioma_server.report_saved import Saved

SIMULATED = frozenset({"inline", "ray", "processes"})
STRATEGY_TITLES = {
    "fedavg": "federated averaging",
    "fedprox": "federated averaging with a proximal term",
    "fedavgm": "federated averaging with momentum at the server",
    "fedadam": "federated averaging with Adam at the server",
    "fedyogi": "federated averaging with Yogi at the server",
    "fedbn": "federated averaging with normalisation layers that stay at each hospital",
    "median": "federated training by coordinate-wise medians",
    "trimmed_mean": "federated training by trimmed means",
    "multikrum": "federated training by Multi-Krum",
}


UNSEEN = {True: "that it had never seen", False: "on whom this run did not train"}


def notices(saved: Saved) -> list[str]:
    """Return what a reader must know before any figure: unfinished, not evaluated, too few patients."""
    reason = saved.run.failure or "the log says why"
    done = f"{saved.done} of {words.count(saved.run.settings.rounds, 'round')} done"
    said = {
        "completed": [],
        "running": [f"This run is not finished: {done}. It is still going, or it ended without a word."],
        "interrupted": [f"This run was interrupted: {done}. The same command continues it."],
        "failed": [f"This run failed: {reason} ({done}). The same command tries again."],
    }[saved.run.status]
    if saved.run.initial_digest is not None:
        said.append(
            "This run started from another model. Patients whom that model was trained on may be among those "
            "reported here; unless they were kept apart, the figures are too good."
        )
    said += duplicates.notices(saved.run.linkage)
    if saved.run.frozen_words:
        said.append(saved.run.frozen_words)
    if saved.evaluation is None:
        said.append("The model was not evaluated yet: there is no held-out result to report.")
    elif saved.evaluation.caution:
        said.append(saved.evaluation.caution)
    comparisons = [c for _, results in saved.survival.found for c in results.comparisons]
    if comparisons and all(c.caution for c in comparisons):
        said.append("No survival comparison has enough deaths and patients to conclude anything from it.")
    return said


def summary(saved: Saved) -> str:
    """Return what was trained on what, by whom, and tested on whom."""
    run = saved.run
    sites = sorted({*run.splits, *run.sites})
    name = TITLES[run.settings.model]
    parts = [f"{name}, a network that {what_it_reads(run.settings)} from brain MRI,"]
    parts.append("was trained in a simulation of" if run.engine in SIMULATED else "was trained at")
    if sites:
        parts.append(
            f"{words.count(len(sites), 'hospital')} ({words.listing(sites)}) on {_training_cases(saved)},"
        )
    parts.append(f"in {words.count(saved.done, 'round')} of {STRATEGY_TITLES[run.settings.strategy]}.")
    if run.engine in SIMULATED:
        parts.append("All of it ran on one machine.")
    if saved.chosen is not None and run.status == "completed":
        parts.append(f"The model after round {saved.chosen} was kept.")
    if saved.evaluation is not None and saved.evaluation.n_cases:
        parts.append(
            f"It was then tested on {tested(saved.evaluation)} {UNSEEN[saved.run.initial_digest is None]}."
        )
        outlines = saved.evaluation.segmentation
        if outlines is not None and outlines.mean_dice.value is not None:
            parts.append(
                f"Its outlines of the tumour overlap those of experts with a Dice of "
                f"{words.with_interval(outlines.mean_dice)} (1 is perfect) in "
                f"{outlined(outlines)} cases."
            )
    return " ".join(parts)


def _training_cases(saved: Saved) -> str:
    run = saved.run
    kind = "made-up training case" if saved.synthetic else "training case"
    if run.splits and run.settings.privacy != "site":
        return words.count(sum(split.train for split in run.splits.values()), kind)
    return f"about {words.count(sum(site.cases for site in run.told.values()), kind)}"


def tested(evaluation: Evaluation) -> str:
    """Return whom the model was tested on."""
    patients = words.few_or(evaluation.n_patients, "patient")
    if evaluation.n_patients == evaluation.n_cases:
        return patients
    return f"{words.few_or(evaluation.n_cases, 'case')} of {patients}"


@dataclass(frozen=True)
class Card:
    """One marker's result in the headline."""

    title: str
    question: str
    value: float | None
    low: float | None
    high: float | None
    auc: str
    interval: str
    spoken: str
    reason: str
    accuracy: str
    usual: str
    majority: str
    tested: str
    weak: str


def cards(evaluation: Evaluation | None) -> list[Card]:
    """Return the headline's result of each marker; none without an evaluation."""
    if evaluation is None:
        return []
    return [_card(gene, evaluation.overall[gene]) for gene in GENES if gene in evaluation.overall]


def _card(gene: Gene, metrics: GeneMetrics) -> Card:
    negative, positive = CLASS_TITLES[gene]
    auc = metrics.auc
    text = words.with_interval(auc)
    value, _, interval = text.partition(" ")
    return Card(
        title=GENE_TITLES[gene],
        question=f"{positive} or {negative}?",
        value=auc.value,
        low=auc.low,
        high=auc.high,
        auc=value,
        interval=interval,
        spoken=f"AUC {text}; 0.5 is guessing, 1 is perfect",
        reason=auc.reason or "not defined",
        accuracy=words.with_interval(metrics.accuracy, share=True),
        usual=_usual(gene, metrics),
        majority=words.percent(metrics.majority.value),
        tested=tested_on(gene, metrics),
        weak=metrics.caution or "",
    )


def _usual(gene: Gene, metrics: GeneMetrics) -> str:
    negative, positive = CLASS_TITLES[gene]
    if metrics.withheld:
        return "the more frequent"
    return positive if 2 * metrics.positives > metrics.n else negative


def tested_on(gene: Gene, metrics: GeneMetrics) -> str:
    """Return ``62 mutant, 36 wild-type``; where that is kept back, how many are known."""
    if not metrics.n:
        return "no case"
    if metrics.withheld:
        return f"{told(metrics).known} known"
    return words.class_counts(gene, metrics.positives, metrics.n)


def facts(saved: Saved) -> dict[str, str]:
    """Return the run in numbers."""
    run = saved.run
    moved = sum(s.bytes_up + s.bytes_down for record in saved.rounds for s in record.sites.values())
    spent = sum(sum(record.seconds.values()) for record in saved.rounds)
    early = run.status == "completed" and saved.done < run.settings.rounds
    named = {
        "Data": words.listing(run.cohorts) or words.DASH,
        "Hospitals": words.integer(len({*run.splits, *run.sites})),
        "Rounds": f"{saved.done} of {run.settings.rounds}{', ended early' if early else ''}",
        "Time for the rounds": words.duration(spent),
        "Sent and received in all": words.size(moved),
    }
    if run.finished:
        named["Finished"] = words.moment(run.finished)
    return named
