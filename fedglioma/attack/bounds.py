"""What differential privacy leaves an attacker: the largest true-positive rate and AUC that epsilon allows.

The attacker tells a model that was trained with a patient from one that was trained without. Whoever
guesses from an (epsilon, delta) private model has, at a false-positive rate a, a true-positive rate of at
most 1 - f(a), with f(a) = max(0, 1 - delta - exp(epsilon) a, exp(-epsilon) (1 - delta - a)) (Kairouz, Oh
and Viswanath, "The composition theorem for differential privacy", ICML 2015; Dong, Roth and Su, "Gaussian
differential privacy", 2022, proposition 3).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

from fedglioma.errors import ConfigError


@dataclass(frozen=True)
class Bound:
    """What a model's stated privacy allows an attacker at most.

    ``largest_tpr`` takes a false-positive rate. The unit is a patient who is there or not, so members and
    non-members must have been divided patient by patient, as the splits of a run are.
    """

    epsilon: float
    delta: float
    largest_tpr: Callable[[float], float]
    largest_auc: float

    @classmethod
    def of(cls, epsilon: float, delta: float) -> Self:
        """Return the bound of one (epsilon, delta).

        Raises
        ------
        ConfigError
            They are no privacy: epsilon below 0, delta outside 0 to 1, or not numbers.
        """
        return cls(
            epsilon, delta, partial(tpr_bound, epsilon=epsilon, delta=delta), auc_bound(epsilon, delta)
        )


def tpr_bound(fpr: float, epsilon: float, delta: float) -> float:
    """Return the largest true-positive rate that an attacker can have at a false-positive rate.

    Raises
    ------
    ConfigError
        A number is out of range.
    """
    _check(epsilon, delta)
    if not 0 <= fpr <= 1:
        raise ConfigError(f"false-positive rate {fpr:g}: from 0 to 1")
    few = _times_exp(fpr, epsilon) + delta
    many = 1 - math.exp(-epsilon) * (1 - delta - fpr)
    return min(1.0, few, many)


def auc_bound(epsilon: float, delta: float) -> float:
    """Return the largest area under the curve of true over false-positive rates: 1 - (1 - delta)^2 / (1 + e).

    e is exp(epsilon). The area under f is that of two triangles which meet where f(a) = a.

    Raises
    ------
    ConfigError
        A number is out of range.
    """
    _check(epsilon, delta)
    return 1 - (1 - delta) ** 2 * _fraction(epsilon)


def _fraction(epsilon: float) -> float:
    """Return 1 / (1 + exp(epsilon)), which does not overflow."""
    return math.exp(-epsilon) / (1 + math.exp(-epsilon))


def _times_exp(value: float, epsilon: float) -> float:
    """Return value * exp(epsilon), infinite where it is too large for a number."""
    return 0.0 if value == 0 else math.inf if epsilon > 700 else value * math.exp(epsilon)


def _check(epsilon: float, delta: float) -> None:
    if not (epsilon >= 0 and math.isfinite(epsilon)):
        raise ConfigError(f"epsilon {epsilon:g}: a number of at least 0 is needed")
    if not 0 <= delta <= 1:
        raise ConfigError(f"delta {delta:g}: from 0 to 1")
