"""How well an attack told members from non-members, with intervals, beside what privacy allows."""

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from fedglioma.attack.bounds import Bound
from fedglioma.case import Frozen
from fedglioma.errors import DataError
from fedglioma.metrics.bootstrap import CONFIDENCE, RESAMPLES, Measure, bootstrap
from fedglioma.metrics.genotype import auc_statistic, roc_points

FloatArray = NDArray[np.float64]

FALSE_ALARMS: Final = 0.01
"""Share of the non-members that may be called members: an attack must be sure of somebody to do harm."""
ENOUGH: Final = 100
"""Non-members below which a share of 1 % allows not one false alarm."""
MEAN_BY_CHANCE: Final = math.sqrt(math.pi / 8)
"""Mean of the one-sided Kolmogorov-Smirnov statistic's limit, whose tail is exp(-2 x^2)."""

Verdict = Literal["above", "within", "no bound"]


class AttackResult(Frozen):
    """One attack on one model; every number is about patients, not scans.

    ``tpr`` is the share of the members found where at most 1 % of the non-members are taken for members:
    ``false_alarms`` of them were. ``fpr_at_most`` is how large the true share of false alarms may be (97.5 %
    sure). ``largest_auc`` and ``largest_tpr`` are what the stated epsilon allows, the latter at 1 %;
    ``largest_tpr_here`` at ``fpr_at_most``, which is what ``tpr`` is judged against. ``advantage`` is the
    largest difference between the two rates at any threshold, ``advantage_by_chance`` what it would be on
    average if the scores said nothing. ``curve`` has (false, true) positive rates.
    """

    name: str
    members: int
    nonmembers: int
    auc: Measure
    tpr: Measure
    false_alarms: int
    fpr_at_most: float
    advantage: float
    advantage_by_chance: float
    largest_auc: float | None = None
    largest_tpr: float | None = None
    largest_tpr_here: float | None = None
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def above_chance(self) -> bool:
        """Whether it found members better than guessing, judged by the lower ends of the intervals."""
        auc, tpr = self.auc.low, self.tpr.low
        return (auc is not None and auc > 0.5) or (tpr is not None and tpr > self.fpr_at_most)


def attack_result(
    name: str,
    member_scores: FloatArray,
    nonmember_scores: FloatArray,
    *,
    bound: Bound | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> AttackResult:
    """Return how well scores tell members from non-members, a higher score meaning member.

    The threshold for 1 % is the score of the non-member that ranks just below the false alarms allowed, so
    that its true false-positive rate is Beta distributed whatever the scores are; the rate of members above
    it has a Clopper-Pearson interval. A result is above its bound only where the lower end of an interval
    is: of the AUC (bootstrap over patients), or of the true-positive rate, against what is allowed at the
    largest false-positive rate that the non-members leave possible.

    Parameters
    ----------
    member_scores, nonmember_scores : array, shape (m,), (n,)
        One score a patient.

    Raises
    ------
    DataError
        There is nobody on one side, or a score is not a number.

    References
    ----------
    Carlini et al. (2022), Membership inference attacks from first principles, IEEE S&P (TPR at a low FPR).
    Nasr et al. (2021), Adversary instantiation, IEEE S&P (bounds judged by Clopper-Pearson intervals).
    """
    _check(name, member_scores, nonmember_scores)
    m, n = len(member_scores), len(nonmember_scores)
    scores = np.concatenate((member_scores, nonmember_scores)).astype(np.float64)
    labels: NDArray[np.int64] = np.repeat([1, 0], (m, n)).astype(np.int64)
    allowed = int(FALSE_ALARMS * n)
    threshold = np.sort(nonmember_scores)[::-1][allowed]
    found = int((member_scores > threshold).sum())
    low, high = clopper_pearson(found, m)
    tpr = Measure(value=found / m, low=low, high=high)
    fpr_at_most = clopper_pearson(allowed, n)[1]
    false_rates, true_rates = roc_points(labels, scores)
    auc = _auc(labels, scores, resamples, seed)
    here = None if bound is None else bound.largest_tpr(fpr_at_most)
    reasons = _reasons(auc, tpr, bound, here)
    return AttackResult(
        name=name,
        members=m,
        nonmembers=n,
        auc=auc,
        tpr=tpr,
        false_alarms=int((nonmember_scores > threshold).sum()),
        fpr_at_most=fpr_at_most,
        advantage=float((true_rates - false_rates).max()),
        advantage_by_chance=min(1.0, MEAN_BY_CHANCE * math.sqrt(1 / m + 1 / n)),
        largest_auc=None if bound is None else bound.largest_auc,
        largest_tpr=None if bound is None else bound.largest_tpr(FALSE_ALARMS),
        largest_tpr_here=here,
        verdict="no bound" if bound is None else "above" if reasons else "within",
        reasons=tuple(reasons),
        notes=tuple(_notes(n)),
        curve=tuple(zip(false_rates.tolist(), true_rates.tolist(), strict=True)),
    )


def clopper_pearson(count: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of a share of which ``count`` of ``total`` were seen, exact for the binomial.

    References
    ----------
    Clopper and Pearson (1934), The use of confidence or fiducial limits, Biometrika 26(4), 404-413.
    """
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, tail))
    high = 1.0 if count == total else float(betaincinv(count + 1, total - count, 1 - tail))
    return low, high


def share(count: int, total: int) -> Measure:
    """Return a share with its Clopper-Pearson interval; undefined of nobody."""
    if not total:
        return Measure(value=None, reason="nobody to count")
    low, high = clopper_pearson(count, total)
    return Measure(value=count / total, low=low, high=high)


def _auc(labels: NDArray[np.int64], scores: FloatArray, resamples: int, seed: int) -> Measure:
    statistic = auc_statistic(labels == 1, scores, "members or non-members are missing")
    auc = bootstrap({"auc": statistic}, np.arange(len(scores)), resamples=resamples, seed=seed)["auc"]
    if auc.value in (0.0, 1.0) and auc.low is None:
        # Resampling perfect separation shows nothing but itself, and a leak this plain must not go without
        # an interval. Of k pairs of different patients each is right with the AUC as its chance.
        pairs = int(min((labels == 1).sum(), (labels == 0).sum()))
        low, high = clopper_pearson(round(auc.value) * pairs, pairs)
        return Measure(value=auc.value, low=low, high=high)
    return auc


def _reasons(auc: Measure, tpr: Measure, bound: Bound | None, tpr_allowed: float | None) -> list[str]:
    if bound is None or tpr_allowed is None:
        return []
    stated = f"epsilon {bound.epsilon:g} at delta {bound.delta:g}"
    reasons = []
    if auc.low is not None and auc.low > bound.largest_auc:
        reasons.append(f"AUC is at least {auc.low:.3f}; {stated} allows no more than {bound.largest_auc:.3f}")
    if tpr.low is not None and tpr.low > tpr_allowed:
        reasons.append(
            f"at least {tpr.low:.1%} of the members are found; {stated} allows no more than {tpr_allowed:.1%}"
        )
    return reasons


def _notes(nonmembers: int) -> list[str]:
    if nonmembers >= ENOUGH:
        return []
    return [f"{nonmembers} non-members: below {ENOUGH} a rate of 1 % means not one false alarm among them"]


def _check(name: str, members: Sequence[float] | FloatArray, others: Sequence[float] | FloatArray) -> None:
    if not len(members) or not len(others):
        raise DataError(
            f"{name}: members and non-members are needed, there are {len(members)} and {len(others)}"
        )
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise DataError(f"{name}: a patient's score is not a finite number; the model's outputs are damaged")
