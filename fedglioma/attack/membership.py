"""Was a patient in the training? What a model says of a case, as one number that grows with familiarity.

The loss-threshold attack calls a member whoever has a low loss (Yeom, Giacomelli, Fredrikson and Jha,
"Privacy risk in machine learning", CSF 2018). The likelihood-ratio attack (``likelihood.py``) uses the
confidence in the true label, which is closer to a normal distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedglioma.case import GENES, TASKS, UNKNOWN, Task
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.loader import eval_batches
from fedglioma.data.prepared import PreparedCase
from fedglioma.training.learner import Learner
from fedglioma.training.predict import Scores, predict

FloatArray = NDArray[np.float64]

LEAST_LOSS: Final = 1e-7
"""Keeps the confidence in an outline finite."""


@dataclass(frozen=True)
class Familiarity:
    """What a model says of n cases; NaN for a case without any known target.

    ``losses`` (n,) is the sum over the known targets. ``confidences`` (n,) is the sum over the known targets
    of log p / (1 - p), p the probability of the true status; for an outline p is exp(-loss).
    """

    losses: FloatArray
    confidences: FloatArray


def attacked_set(cases: Sequence[PreparedCase], settings: RunConfig) -> CaseDataset:
    """Return cases as they are attacked: cropped at the centre, with masks where they are learned."""
    masks = Task.SEGMENTATION in settings.tasks
    return CaseDataset(cases, crop=settings.crop, masks="whole" if masks else "none")


def familiarity(
    learner: Learner, dataset: CaseDataset, device: torch.device, *, batch_size: int = 2
) -> Familiarity:
    """Return how familiar a model is with each case of a data set, in its order."""
    learner.to(device)
    scores = predict(
        learner.model, eval_batches(dataset, batch_size=batch_size), device=device, loss=learner.loss
    )
    confidences = np.column_stack([_confidence(scores, learner.tasks, task) for task in TASKS])
    return Familiarity(_known_sum(scores.losses), _known_sum(confidences))


def by_patient(values: FloatArray, patients: Sequence[str]) -> FloatArray:
    """Return the mean of each patient's cases, (..., p), patients in the order of their first case.

    Privacy is a patient's, with all scans, so that several scans make one decision.

    Parameters
    ----------
    values : array, shape (..., n)
    patients : sequence of n keys
    """
    place = {name: number for number, name in enumerate(dict.fromkeys(patients))}
    index = np.array([place[name] for name in patients], dtype=np.int64)
    mine = index[:, None] == np.arange(len(place))  # (n, p)
    means: FloatArray = values @ mine / mine.sum(axis=0)
    return means


def _known_sum(columns: FloatArray) -> FloatArray:
    known = np.isfinite(columns)
    sums: FloatArray = np.where(known.any(axis=1), np.where(known, columns, 0.0).sum(axis=1), np.nan)
    return sums


def _confidence(scores: Scores, tasks: Sequence[Task], task: Task) -> FloatArray:
    """Return log p / (1 - p) of the true answer of one task, (n,), NaN where it is not known or not asked."""
    if task not in tasks:
        return np.full(len(scores.labels), np.nan)
    if task is Task.SEGMENTATION:
        loss = np.maximum(scores.losses[:, list(tasks).index(task)], LEAST_LOSS)
        confidence: FloatArray = -loss - np.log(-np.expm1(-loss))
        return confidence
    column = GENES.index(task)
    logits = scores.logits[:, column].double().numpy()
    labels = scores.labels[:, column].numpy()
    # With two classes the log odds of one are its logit less the other's: nothing saturates.
    odds = logits[:, 1] - logits[:, 0]
    signed: FloatArray = np.where(labels == UNKNOWN, np.nan, np.where(labels == 1, odds, -odds))
    return signed
