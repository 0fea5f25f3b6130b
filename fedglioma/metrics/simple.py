"""What needs no network: the majority class, and logistic regression on age or on tumour volume.

Each learns from training patients alone and returns, for held-out ones, the probability of class 1 of one
marker, so that ``gene_metrics`` measures it like a network. A table that shows them says what a network
adds.

A missing covariate becomes the training median. There is no indicator of missingness: with a few dozen
patients it would mostly encode which hospital did not record it.
"""

from importlib import import_module
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from fedglioma.case import UNKNOWN
from fedglioma.errors import ConfigError, DataError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

PENALTY = 1.0
"""Half of this times the squared slope per standard deviation is added to the negative log-likelihood;
the intercept is free. It keeps the slope finite where a covariate separates the classes."""
SMALLEST_ML = 0.01
"""Volumes below this, no tumour found among them, count as this: a logarithm of 0 does not exist."""


def majority_probabilities(train_labels: IntArray, n: int) -> FloatArray:
    """Return the training share of class 1 for each of n held-out patients, shape (n,).

    Its argmax is the majority class and its AUC 0.5; unlike 0 or 1 it also has a log loss to compare with.

    Parameters
    ----------
    train_labels : array of int, shape (m,)
        0, 1, or ``UNKNOWN``, which takes no part.

    Raises
    ------
    DataError
        No training patient has a known label.
    """
    known = train_labels[train_labels != UNKNOWN]
    if not len(known):
        raise DataError("no training patient has a known label: the majority class does not exist")
    return np.full(n, known.mean(), dtype=np.float64)


def age_probabilities(train_age: FloatArray, train_labels: IntArray, age: FloatArray) -> FloatArray:
    """Return what age alone says of held-out patients, shape (n,).

    Parameters
    ----------
    train_age : array, shape (m,)
        In years (any unit gives the same), nan where missing.
    train_labels : array of int, shape (m,)
        0, 1, or ``UNKNOWN``, which takes no part.
    age : array, shape (n,)
        Of held-out patients, nan where missing.

    Raises
    ------
    DataError
        No training patient has a known label, lengths differ, or a value is infinite.
    ConfigError
        scikit-learn is not installed.
    """
    return covariate_probabilities(train_age, train_labels, age)


def volume_probabilities(train_ml: FloatArray, train_labels: IntArray, ml: FloatArray) -> FloatArray:
    """Return what the logarithm of the tumour's volume alone says of held-out patients, shape (n,).

    Takes volumes in mL, nan where missing, otherwise what ``age_probabilities`` takes; raises what it
    raises, and ``DataError`` on a negative volume.
    """
    return covariate_probabilities(_log_ml(train_ml), train_labels, _log_ml(ml))


def covariate_probabilities(train: FloatArray, train_labels: IntArray, held_out: FloatArray) -> FloatArray:
    """Return the probabilities of a penalised logistic regression on one covariate, shape (n,).

    The covariate is standardised by the labelled training patients, after missing values became their
    median. With one class only, or a covariate that is missing or the same in all of them, the
    probability is ``majority_probabilities``.

    Parameters and errors are those of ``age_probabilities``.
    """
    if len(train) != len(train_labels):
        raise DataError(f"{len(train)} covariates for {len(train_labels)} training labels: give one each")
    if np.isinf(train).any() or np.isinf(held_out).any():
        raise DataError("a covariate is infinite: leave it missing (nan) or correct it")
    majority = majority_probabilities(train_labels, len(held_out))
    known = train_labels != UNKNOWN
    labels, values = train_labels[known], train[known]
    if labels.min() == labels.max() or np.isnan(values).all():
        return majority
    median = float(np.nanmedian(values))
    values = np.where(np.isnan(values), median, values)
    if np.ptp(values) == 0:
        return majority
    mean, deviation = values.mean(), values.std()
    asked = (np.where(np.isnan(held_out), median, held_out) - mean) / deviation
    return _logistic((values - mean) / deviation, labels, asked)


def _logistic(train: FloatArray, labels: IntArray, asked: FloatArray) -> FloatArray:
    if find_spec("sklearn") is None:
        raise ConfigError("scikit-learn is not installed; run: pip install 'fedglioma[server]'")
    regression = import_module("sklearn.linear_model").LogisticRegression(C=1 / PENALTY, tol=1e-8)
    regression.fit(train[:, None], labels)
    logits = asked * regression.coef_[0, 0] + regression.intercept_[0]
    probabilities: FloatArray = 0.5 * (1 + np.tanh(logits / 2))  # the logistic function, without overflow
    return probabilities


def _log_ml(ml: FloatArray) -> FloatArray:
    if (ml < 0).any():
        raise DataError("a tumour volume is negative: volumes are in mL, 0 or more")
    logarithm: FloatArray = np.log(np.maximum(ml, SMALLEST_ML))  # nan stays nan
    return logarithm
