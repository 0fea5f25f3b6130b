"""What an attack on membership can reach at most, by what was spent of a patient's privacy."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedglioma.config.privacy import AccountantName
from fedglioma.errors import PrivacyError
from fedglioma.privacy.accounting import LARGEST_EPSILON, Mechanism, epsilons_of

FloatArray = npt.NDArray[np.float64]


def largest_tpr(mechanisms: Iterable[Mechanism], fpr: float, accountant: AccountantName) -> float:
    """Return the largest true-positive rate that a membership attack with this false-positive rate can have.

    The least of the bounds that follow from (epsilon, delta) for many deltas.

    Raises
    ------
    PrivacyError
        The rate is not from 0 to 1; or as ``epsilon_of``.

    References
    ----------
    Kairouz, Oh and Viswanath, "The composition theorem for differential privacy", ICML 2015, theorem 2.1.
    """
    if not 0 <= fpr <= 1:
        raise PrivacyError(f"false-positive rate {fpr:g}: give one from 0 to 1")
    slopes, offsets = _lines(tuple(mechanisms), accountant)
    return float(np.clip(np.min(slopes * fpr + offsets), 0.0, 1.0))


def largest_auc(mechanisms: Iterable[Mechanism], accountant: AccountantName) -> float:
    """Return the largest area under the ROC curve that a membership attack can have.

    The exact area below the least of the bounds of ``largest_tpr``, which are straight lines.

    Raises
    ------
    PrivacyError
        As ``epsilon_of``.
    """
    slopes, offsets = _lines(tuple(mechanisms), accountant)
    with np.errstate(all="ignore"):
        crossings = (offsets[None, :] - offsets[:, None]) / (slopes[:, None] - slopes[None, :])
    inside = crossings[np.isfinite(crossings) & (crossings > 0) & (crossings < 1)]
    rates = np.unique(np.concatenate([[0.0, 1.0], inside]))
    heights = np.clip(np.min(slopes[:, None] * rates + offsets[:, None], axis=0), 0.0, 1.0)
    return float(np.trapezoid(heights, rates))


def delta_curve(
    mechanisms: Iterable[Mechanism], accountant: AccountantName
) -> tuple[tuple[float, float], ...]:
    """Return (epsilon, delta) pairs, delta growing from 1e-7 to 0.9, that all hold for the mechanisms.

    Raises
    ------
    PrivacyError
        As ``epsilon_of``.
    """
    history, deltas = tuple(mechanisms), [float(delta) for delta in np.geomspace(1e-7, 0.9, 30)]
    return tuple(zip(epsilons_of(history, deltas, accountant), deltas, strict=True))


@lru_cache(maxsize=16)
def _lines(history: tuple[Mechanism, ...], accountant: AccountantName) -> tuple[FloatArray, FloatArray]:
    # A curve that is drawn asks for many rates of the same mechanisms.
    return _edges(delta_curve(history, accountant))


def _edges(curve: Sequence[tuple[float, float]]) -> tuple[FloatArray, FloatArray]:
    """Return slopes and offsets of the lines that a ROC curve lies below: two for each pair, and 1."""
    slopes, offsets = [0.0], [1.0]
    for epsilon, delta in curve:
        if epsilon < LARGEST_EPSILON:
            slopes += [math.exp(epsilon), math.exp(-epsilon)]
            offsets += [delta, 1 - math.exp(-epsilon) * (1 - delta)]
    return np.array(slopes), np.array(offsets)
