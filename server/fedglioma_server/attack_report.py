"""What an attack on a model found, as record and in words, and whether the model may be released."""

from pathlib import Path
from typing import Final

from fedglioma.attack.probe import ProbeResult
from fedglioma.attack.result import FALSE_ALARMS, AttackResult
from fedglioma.case import Frozen
from fedglioma.errors import FedGliomaError
from fedglioma.metrics.bootstrap import Measure
from fedglioma_server.card_tables import measure_text
from fedglioma_server.records import read_json
from fedglioma_server.runfolder import RunFolder
from fedglioma_server.stated_privacy import SAME, StatedPrivacy

SCHEMA_VERSION: Final = 1
SERIOUS_AUC: Final = 0.6
SERIOUS_TPR: Final = 0.05
"""Where the lower end of an interval is above, a warning is given of a model without a bound."""
UNTRIED: Final = (
    "No attack on this model is on record (bundled with --without-attack): nobody tried what it gives away "
    "of the patients that it was trained on."
)


class AttackReport(Frozen):
    """attack.json: attacks on one model, and what its run says of its privacy.

    ``shadow_rounds`` is how long each shadow model trained, in the run's rounds. ``privacy`` says in words
    what is stated of the model; ``epsilon`` and ``delta`` are None where it is not differentially private, or
    where nobody said. ``refusals`` are why it must not be released: attacks above the bound, and a statement
    that what its run did does not bear out.
    """

    schema_version: int = SCHEMA_VERSION
    model_digest: str
    run_id: str
    round: int
    synthetic: bool
    members: int
    nonmembers: int
    left_out: int
    privacy: str
    epsilon: float | None
    delta: float | None
    shadows: int
    shadow_rounds: int
    attacks: tuple[AttackResult, ...]
    probes: tuple[ProbeResult, ...]
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def attack_file(run: Path) -> Path:
    """Return where a run folder keeps what the last attack on its model found."""
    return RunFolder(run).evaluation / "attack.json"


def attack_on(run: Path, model_digest: str) -> AttackReport | None:
    """Return what the last attack on a model of a run found; None where there was none, or on another model.

    Raises
    ------
    ConfigError
        The file is damaged.
    """
    file = attack_file(run)
    found = read_json(file, AttackReport) if file.exists() else None
    return found if found is not None and found.model_digest == model_digest else None


def require_releasable(
    model: Path, stated: StatedPrivacy, attacked: AttackReport | None, *, without_attack: bool
) -> None:
    """Refuse to release a model that keeps not what is stated of it, or of which nobody tried it.

    Parameters
    ----------
    attacked : AttackReport or None
        The last attack on this very model, if there was one.
    without_attack : bool
        Whether a model that states privacy may go although nobody attacked it.

    Raises
    ------
    FedGliomaError
        Its run spent more than is stated, the attack found more than that allows or was judged by another
        epsilon, or there was none.
    """
    reasons = [*stated.doubts, *(attacked.refusals if attacked is not None else ())]
    if reasons:
        raise FedGliomaError(
            f"{model}: not to be released: {reasons[0]}; see docs/attacks.md, and attack it again once that "
            "is mended"
        )
    if attacked is None and stated.private and not without_attack:
        raise FedGliomaError(
            f"{model}: not to be released: it states privacy, and no attack on it is on record; run "
            "'fedglioma-server evaluate MODEL --attack --gate --out DIR' on the model in its run folder, or "
            "say --without-attack, which then stands on the bundle's page"
        )
    epsilon = None if stated.bound is None else stated.bound.epsilon
    if attacked is not None and not _same(attacked.epsilon, epsilon):
        raise FedGliomaError(
            f"{model}: not to be released: the attack on record was judged by epsilon "
            f"{_or_none(attacked.epsilon)}, now {_or_none(epsilon)} is stated; attack it again"
        )


def _same(one: float | None, other: float | None) -> bool:
    """Return whether two epsilons are the same but for the version of the accountant."""
    if one is None or other is None:
        return one is other
    return max(one, other) <= min(one, other) * SAME


def _or_none(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:g}"


def gate(report: AttackReport) -> list[str]:
    """Return why a model must not be released: attacks above what its stated privacy allows."""
    return [f"{attack.name}: {reason}" for attack in report.attacks for reason in attack.reasons]


def serious(report: AttackReport) -> list[str]:
    """Return what whoever releases a model without a stated bound should know before."""
    if report.epsilon is not None:
        return []
    found = []
    for attack in report.attacks:
        if attack.auc.low is not None and attack.auc.low > SERIOUS_AUC:
            found.append(
                f"{attack.name}: AUC is at least {attack.auc.low:.2f}: the model tells who trained it"
            )
        limit = max(SERIOUS_TPR, attack.fpr_at_most)
        if attack.tpr.low is not None and attack.tpr.low > limit:
            found.append(
                f"{attack.name}: at least {attack.tpr.low:.0%} of the members are found with hardly a false "
                "alarm"
            )
    return found


def attack_words(report: AttackReport) -> list[str]:
    """Return sentences about the attacks, as for a model card."""
    told = [
        f"Attacked with {report.members} patients that it was trained on and {report.nonmembers} that it was "
        f"not ({report.privacy})."
    ]
    for attack in report.attacks:
        verdict = {
            "above": "more than its stated privacy allows",
            "within": "within what its stated privacy allows",
            "no bound": "above chance" if attack.above_chance else "not told from chance",
        }[attack.verdict]
        told.append(
            f"Membership by {attack.name}: AUC {measure_text(attack.auc)}, "
            f"{_percent(attack.tpr)} of the members found at {FALSE_ALARMS:.0%} false alarms: {verdict}."
        )
    told += [_probe_words(found) for found in report.probes]
    return [*told, *report.warnings]


def attack_text(report: AttackReport) -> str:
    """Return the report for reading on a screen."""
    lines = ["SYNTHETIC DATA: made-up patients, nothing here is clinical evidence"] * report.synthetic
    lines += [
        f"round {report.round} of {report.run_id}: {report.members} members, {report.nonmembers} non-members"
        + (f"; {report.left_out} cases without a known target left out" if report.left_out else ""),
        f"privacy: {report.privacy}",
        f"  {'attack':<17} {'AUC':<18} {'allowed':<8} {'TPR at 1 % FPR':<22} {'allowed':<8} advantage",
    ]
    for attack in report.attacks:
        auc, tpr = (_allowed(value) for value in (attack.largest_auc, attack.largest_tpr))
        lines.append(
            f"  {attack.name:<17} {measure_text(attack.auc):<18} {auc:<8} {_percent(attack.tpr):<22} "
            f"{tpr:<8} {attack.advantage:.2f} (by chance {attack.advantage_by_chance:.2f})"
        )
    lines += [f"  {_probe_words(found)}" for found in report.probes]
    notes = dict.fromkeys(note for attack in report.attacks for note in attack.notes)
    lines += [f"note: {note}" for note in notes]
    lines += [f"warning: {warning}" for warning in report.warnings]
    lines += [f"not to be released: {refusal}" for refusal in report.refusals]
    return "\n".join([*lines, "research use only, not a medical device"])


def _probe_words(found: ProbeResult) -> str:
    kind = "clipped and noised gradient" if found.noise else "plain gradient"
    words = (
        f"One patient's {kind} points to the right one of {found.candidates} images for "
        f"{_percent(found.recognised)} of the patients (guessing: {found.chance:.0%})"
    )
    if found.drawn:
        words += (
            f"; an image drawn from it alone correlates {measure_text(found.correlation)} with the patient's "
            f"and {measure_text(found.correlation_others)} with others'"
        )
    return f"{words}: {'it gives its patient away' if found.leaks else 'nothing was found in it'}."


def _percent(measure: Measure) -> str:
    if measure.value is None:
        return "-"
    if measure.low is None or measure.high is None:
        return f"{measure.value:.1%}"
    return f"{measure.value:.1%} [{measure.low:.1%}-{measure.high:.1%}]"


def _allowed(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
