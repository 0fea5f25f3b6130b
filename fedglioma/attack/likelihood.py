"""The likelihood-ratio attack: how a model with a patient differs from one without, learned from shadows.

A shadow is a model of the same kind, trained on a random half of the patients. For each patient, the
confidences of the shadows that saw the patient, and of those that did not, are two normal distributions; the
attacked model's confidence is likelier under one of them (Carlini, Chien, Nasr, Song, Terzis and Tramer,
"Membership inference attacks from first principles", IEEE S&P 2022).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedglioma.errors import DataError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

FEW: Final = 32
"""Shadows on a side of a patient below which all patients share one variance, as the paper advises."""
LEAST_DEVIATION: Final = 1e-6
"""Keeps a density finite where shadows agree to the last digit."""


def likelihood_ratio(target: FloatArray, shadows: FloatArray, trained_on: BoolArray) -> FloatArray:
    """Return each patient's log-likelihood ratio of having been a member, (p,); higher is likelier.

    Parameters
    ----------
    target : array, shape (p,)
        Confidences of the attacked model.
    shadows : array, shape (s, p)
        Those of the shadow models.
    trained_on : array of bool, shape (s, p)
        Which shadow saw which patient.

    Raises
    ------
    DataError
        The shapes do not belong together, or a patient was seen by all shadows, or by none.
    """
    _check(target, shadows, trained_on)
    if not (trained_on.any(axis=0) & ~trained_on.all(axis=0)).all():
        raise DataError("shadow models: a patient was in all of them, or in none; train more of them")
    seen = _normal(shadows, trained_on)
    unseen = _normal(shadows, ~trained_on)
    ratio: FloatArray = _log_density(target, *seen) - _log_density(target, *unseen)
    return ratio


def _normal(values: FloatArray, counted: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Return each patient's mean and standard deviation over the shadows that count, both (p,)."""
    counts = counted.sum(axis=0)
    mean = np.where(counted, values, 0.0).sum(axis=0) / counts
    squares = (np.where(counted, values - mean, 0.0) ** 2).sum(axis=0)
    if counts.min() >= FEW:
        variance = squares / (counts - 1)
    else:
        # Pooled over patients, each about an own mean; with one shadow a side nothing is left to pool.
        freedom = max(int((counts - 1).sum()), 1)
        variance = np.full(len(mean), squares.sum() / freedom)
    return mean, np.sqrt(np.maximum(variance, LEAST_DEVIATION**2))


def _log_density(x: FloatArray, mean: FloatArray, deviation: FloatArray) -> FloatArray:
    density: FloatArray = -0.5 * ((x - mean) / deviation) ** 2 - np.log(deviation)
    return density


def _check(target: FloatArray, shadows: FloatArray, trained_on: BoolArray) -> None:
    if shadows.ndim != 2 or shadows.shape != trained_on.shape or target.shape != shadows.shape[1:]:
        raise DataError(
            f"shadow models: shapes {shadows.shape} and {trained_on.shape} for {target.shape} patients; "
            "(shadows, patients) twice, and (patients,)"
        )
    if not (np.isfinite(target).all() and np.isfinite(shadows).all()):
        raise DataError("shadow models: a confidence is not a finite number; lower the learning rate")
