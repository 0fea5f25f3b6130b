"""What a series of noisy releases costs a patient: epsilon, by Opacus' accountants, and what it bounds.

A release is a sampled Gaussian mechanism, neighbours are two sets of patients of which one has a patient
more. Releases of different kinds are composed together, so that training, counts and landmarks of one
patient are one sum.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.optimize import brentq

from fedglioma.case import Frozen
from fedglioma.config.privacy import AccountantName
from fedglioma.errors import PrivacyError
from fedglioma.noise import delta_of, sigma_for

if TYPE_CHECKING:
    from opacus.accountants.analysis.prv import DiscretePRV

FINEST: Final = 10_000
"""Noise multipliers are chosen in steps of one over this."""
MOST_NOISE: Final = 1000.0
LEAST_NOISE: Final = 0.05
LEAST_DELTA: Final = 1e-10
"""Below it rounding errors of the PRV accountant would be as large as delta."""
LARGEST_EPSILON: Final = 300.0
"""Where sampled mechanisms cost more by RDP, PRV says infinite: its exponentials end at 709."""

_WHOLE: Final = tuple(sorted({*range(2, 65), *(round(64 * 1.03**k) for k in range(1, 94))}))
"""Renyi orders to 1000, all tried: the bound may leap between two of them."""
_NEAR_ONE: Final = tuple(1 + 0.01 * 1.08**k for k in range(91))
"""Orders between 1 and 12, for large epsilons; the bound is smooth there."""
_COARSE: Final = 8
_ROUGH: Final = 0.5
"""Above half a unit of epsilon the PRV accountant's bound on its own error is not proven."""
_SMALLEST_ERROR: Final = 0.001

MOST_POINTS: Final = 10_000_000
"""Half the grid of the PRV accountant: 80 MB an array."""

History = tuple["Mechanism", ...]
FloatArray = npt.NDArray[np.float64]


class Mechanism(Frozen):
    """Sampled Gaussian mechanism: each patient takes part with ``sampling_rate``, each number gets noise.

    ``noise_multiplier`` is the noise's standard deviation over the most that one patient can move the sum,
    as a Euclidean length; ``sampling_rate`` 1 is no sampling; ``steps`` is how often it was done.
    """

    noise_multiplier: float = Field(gt=0, le=1e6)
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    steps: int = Field(default=1, ge=1, le=10**9)


class Spent(Frozen):
    """What was done to those of whom a released model tells, a patient or a whole site each (``unit``).

    The most of any of them, from the first weights on; whatever goes on from the model comes on top.
    """

    unit: Literal["patient", "site"]
    mechanisms: tuple[Mechanism, ...]


def gaussian_equivalent(epsilon: float, delta: float) -> float:
    """Return the noise multiplier of the Gaussian mechanism that is just (epsilon, delta) private.

    With it, noise that was chosen by ``noise.sigma_for`` composes as a ``Mechanism`` without sampling.

    References
    ----------
    Balle and Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018, theorem 8.
    """
    return sigma_for(epsilon, 1.0, delta)


def epsilon_of(mechanisms: Iterable[Mechanism], delta: float, accountant: AccountantName) -> float:
    """Return the epsilon with which all the mechanisms together are (epsilon, delta) private.

    Their order makes no difference, and equal ones may be given as one. Infinite is possible: with the
    accountant ``prv``, sampled mechanisms beyond an epsilon of 300 are not told apart.

    Parameters
    ----------
    mechanisms : iterable of Mechanism
        None: epsilon is 0.
    delta : float
        From 1e-10 to below 1.
    accountant : "prv" or "rdp"
        Numerical composition (tight), or Renyi divergences (above it by a few percent, and by much for few
        steps at a small rate).

    Raises
    ------
    PrivacyError
        Delta is out of range, or the accountant has no answer; no other is asked instead.

    References
    ----------
    Gopi, Lee and Wutschitz, "Numerical composition of differential privacy", NeurIPS 2021 (prv). Mironov,
    Talwar and Zhang, "Renyi differential privacy of the sampled Gaussian mechanism", 2019, and Balle et
    al., "Hypothesis testing interpretations and Renyi differential privacy", AISTATS 2020, theorem 21 (rdp).
    """
    _require(delta)
    return _epsilon(_merged(mechanisms), delta, accountant)


def noise_for(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: AccountantName,
    *,
    besides: Sequence[Mechanism] = (),
) -> float:
    """Return the least noise multiplier, in ten-thousandths, that keeps epsilon to the target.

    ``besides`` is what else is released of the same patients, and part of that epsilon.

    Raises
    ------
    PrivacyError
        The target is not above 0, or no noise up to 1000 reaches it; or as ``epsilon_of``.
    """
    if not target_epsilon > 0:
        raise PrivacyError(f"target epsilon {target_epsilon:g}: give one above 0")

    @lru_cache(maxsize=64)
    def above(parts: int) -> float:
        """Return by how much the logarithm of epsilon is above the target's."""
        mechanism = Mechanism(noise_multiplier=parts / FINEST, sampling_rate=sampling_rate, steps=steps)
        epsilon = epsilon_of((mechanism, *besides), delta, accountant)
        return min(math.log(max(epsilon, 1e-12) / target_epsilon), 10.0)

    least, most = round(LEAST_NOISE * FINEST), round(MOST_NOISE * FINEST)
    guess = FINEST * (0.4 + sampling_rate * math.sqrt(steps * math.log(1 / delta)) / target_epsilon)
    low = high = min(max(round(guess), least), most)
    while above(high) > 0 and high < most:
        low, high = high, min(2 * high, most)
    while above(low) <= 0 and low > least:
        low, high = max(low // 2, least), low
    if above(high) > 0:
        raise PrivacyError(
            f"target epsilon {target_epsilon:g}: no noise up to {MOST_NOISE:g} keeps {steps} steps to it"
            f"{' with what else is told' if besides else ''}; ask for fewer steps, a lower sampling rate, or "
            "a larger epsilon"
        )
    if above(low) <= 0:
        return low / FINEST
    root = brentq(lambda x: above(round(math.exp(x))), math.log(low), math.log(high), xtol=1e-6, rtol=1e-6)
    found = min(max(round(math.exp(root)), low), high)
    while above(found) > 0:
        found += 1
    while above(found - 1) <= 0:
        found -= 1
    return found / FINEST


def epsilons_of(
    mechanisms: Iterable[Mechanism], deltas: Sequence[float], accountant: AccountantName
) -> tuple[float, ...]:
    """Return the epsilon of each delta: all the (epsilon, delta) hold at once.

    Raises
    ------
    PrivacyError
        As ``epsilon_of``.
    """
    for delta in deltas:
        _require(delta)
    history = _merged(mechanisms)
    if _tight(history, accountant) and (rough := _rdp_epsilon(history, min(deltas))) <= LARGEST_EPSILON:
        return _prv_epsilons(history, tuple(deltas), _error(rough))
    return tuple(_epsilon(history, delta, accountant) for delta in deltas)


def _merged(mechanisms: Iterable[Mechanism]) -> History:
    """Return equal mechanisms as one, in a fixed order; unsampled ones as one Gaussian mechanism.

    Gaussian mechanisms compose exactly: their precisions add up.
    """
    steps: defaultdict[tuple[float, float], int] = defaultdict(int)
    for mechanism in mechanisms:
        steps[mechanism.noise_multiplier, mechanism.sampling_rate] += mechanism.steps
    # A sum of many numbers is the same in any order only if it is taken in one order.
    precisions = sorted(count / noise**2 for (noise, rate), count in steps.items() if rate == 1)
    merged = [
        Mechanism.model_construct(noise_multiplier=noise, sampling_rate=rate, steps=count)
        for (noise, rate), count in sorted(steps.items())
        if rate < 1
    ]
    if precisions:
        noise = 1 / math.sqrt(math.fsum(precisions))
        merged.append(Mechanism.model_construct(noise_multiplier=noise, sampling_rate=1.0, steps=1))
    return tuple(merged)


@lru_cache(maxsize=4096)
def _epsilon(history: History, delta: float, accountant: AccountantName) -> float:
    if not history:
        return 0.0
    if accountant == "rdp":
        return _rdp_epsilon(history, delta)
    if not _tight(history, accountant):
        return _gaussian_epsilon(history[0].noise_multiplier, delta)
    rough = _rdp_epsilon(history, delta)
    if rough > LARGEST_EPSILON:
        return math.inf
    (first,) = _prv_epsilons(history, (delta,), _error(rough))
    # The bound on the accountant's own error is part of the answer: where it is over 1 %, work finer.
    if _error(first) > 0.5 * _error(rough):
        return first
    return _prv_epsilons(history, (delta,), _error(first))[0]


def _tight(history: History, accountant: AccountantName) -> bool:
    """Whether losses must be composed numerically: Gaussian mechanisms alone have a closed form."""
    return accountant == "prv" and any(mechanism.sampling_rate < 1 for mechanism in history)


def _require(delta: float) -> None:
    if not LEAST_DELTA <= delta < 1:
        raise PrivacyError(f"delta {delta:g}: choose one from {LEAST_DELTA:g} to below 1")


def _gaussian_epsilon(noise: float, delta: float) -> float:
    """Return epsilon of one Gaussian mechanism, in closed form (``noise.delta_of``)."""
    if delta_of(noise, 0.0, 1.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(noise, high, 1.0) > delta:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if delta_of(noise, middle, 1.0) > delta else (low, middle)
    return high


def _rdp_epsilon(history: History, delta: float) -> float:
    """Return the least epsilon over the orders: each gives a bound, so that the search may stop anywhere."""

    @cache
    def at(order: float) -> float:
        divergence = math.fsum(
            mechanism.steps * _divergence(mechanism.noise_multiplier, mechanism.sampling_rate, order)
            for mechanism in history
        )
        return divergence - (math.log(delta) + math.log(order)) / (order - 1) + math.log1p(-1 / order)

    least = min(_WHOLE, key=at)
    if least <= _NEAR_ONE[-1]:
        # fractional orders are alternating sums and slow: a few first, then those about the best
        best = min(range(0, len(_NEAR_ONE), _COARSE), key=lambda index: at(_NEAR_ONE[index]))
        near = _NEAR_ONE[max(best - _COARSE, 0) : best + _COARSE + 1]
        return max(0.0, min(at(least), *map(at, near)))
    return max(0.0, at(least))


@lru_cache(maxsize=65536)
def _divergence(noise: float, rate: float, order: float) -> float:
    """Return one step's Renyi divergence of an order; infinite where it cannot be worked out."""
    if rate == 1:
        return order / (2 * noise**2)
    from opacus.accountants.analysis.rdp import compute_rdp

    with _quiet():
        try:
            found = float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=float(order)))
        except (ValueError, OverflowError):
            # an alternating sum lost all its digits: this order says nothing, the others still bound
            return math.inf
    return found if found >= 0 else math.inf


def _error(epsilon: float) -> float:
    return min(max(0.005 * epsilon, _SMALLEST_ERROR), _ROUGH)


def _prv_epsilons(history: History, deltas: tuple[float, ...], error: float) -> tuple[float, ...]:
    slack = min(deltas) / 1000
    try:
        with _quiet():
            loss = _composed(history, error, slack)
            found = [max(0.0, float(loss.compute_epsilon(delta, slack, error)[2])) for delta in deltas]
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as failure:
        raise PrivacyError(
            f"the prv accountant has no answer for {len(history)} mechanisms, the first with noise "
            f"{history[0].noise_multiplier:g} and rate {history[0].sampling_rate:g}, at delta "
            f"{min(deltas):g} ({failure}); choose other terms, or the accountant rdp in the settings"
        ) from None
    if not np.isfinite(found).all():
        raise PrivacyError(f"the prv accountant has no finite answer at delta {min(deltas):g}; choose rdp")
    return tuple(found)


def _composed(history: History, error: float, slack: float) -> "DiscretePRV":
    """Return the discretised privacy loss of all, on a grid chosen as Opacus does (paper, remark 5.6)."""
    from opacus.accountants.analysis import prv

    counts = [mechanism.steps for mechanism in history]
    reach = _rdp_epsilon(history, slack / 4)
    for mechanism in history:
        one = Mechanism.model_construct(**(dict(mechanism) | {"steps": 1}))
        reach = max(reach, _rdp_epsilon((one,), slack / (8 * sum(counts))))
    reach = max(reach, error) + 3
    mesh = error / math.sqrt(sum(counts) * math.log(12 / slack) / 2)
    if reach / mesh > MOST_POINTS:
        raise PrivacyError(
            f"{sum(counts)} steps are more than the prv accountant can compose; choose the accountant rdp"
        )
    domain = prv.Domain.create_aligned(-reach, reach, mesh)
    losses = [
        prv.TruncatedPrivacyRandomVariable(
            prv.PoissonSubsampledGaussianPRV(mechanism.sampling_rate, mechanism.noise_multiplier),
            domain.t_min,
            domain.t_max,
        )
        for mechanism in history
    ]
    return prv.compose_heterogeneous([prv.discretize(loss, domain) for loss in losses], counts)


@contextmanager
def _quiet() -> Iterator[None]:
    # Opacus takes logarithms of 0 and exponentials that overflow on its way, where the results do not matter.
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
