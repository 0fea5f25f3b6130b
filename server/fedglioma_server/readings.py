"""What a model says of prepared cases, with what the tables group them by."""

from collections.abc import Sequence

import numpy as np
import torch

from fedglioma.case import GENES, Task, subset_name
from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.loader import eval_batches
from fedglioma.data.prepared import PreparedCase
from fedglioma.metrics.predictions import TUMOUR_COLUMNS, BoolArray, FloatArray, Predictions
from fedglioma.metrics.segmentation import hd95_mm, volume_ml
from fedglioma.training.inference import Reader
from fedglioma.training.learner import Learner
from fedglioma.training.predict import predict


def held_out_set(cases: Sequence[PreparedCase], settings: RunConfig) -> CaseDataset:
    """Return cases as they are evaluated: nothing random, with the tumour's mask where it is asked for."""
    return CaseDataset(
        cases,
        crop=settings.crop,
        masks="whole" if Task.SEGMENTATION in settings.tasks else "none",
        whole=settings.sliding,
    )


def batch_size(settings: RunConfig) -> int:
    """Return how many cases are read at once: whole volumes differ in size and come alone."""
    return 1 if settings.sliding else settings.batch_size


def predictions_of(
    learner: Learner,
    settings: RunConfig,
    cases: Sequence[PreparedCase],
    splits: Sequence[str],
    device: torch.device,
) -> Predictions:
    """Return a model's predictions for prepared cases on the model's intensity scale.

    Dice, distances and volumes of tumours are measured on the whole prepared grid, as the papers do, however
    much of it the network is shown: what was outlined outside its crop counts as not found.
    """
    dataset = held_out_set(cases, settings)
    figures: FloatArray = np.full((len(cases), len(TUMOUR_COLUMNS)), np.nan)

    def measure(place: int, found: BoolArray, outlined: BoolArray | None) -> None:
        spacing = cases[place].spacing_mm
        figures[place, 2] = volume_ml(found, spacing)
        if outlined is not None:
            distance = hd95_mm(found, outlined, spacing)
            figures[place, 1] = np.nan if distance is None else distance
            figures[place, 3] = volume_ml(outlined, spacing)

    scores = predict(
        learner.model,
        eval_batches(dataset, batch_size=batch_size(settings)),
        device=device,
        reader=Reader.of(settings),
        measured_in=dataset,
        seen=measure,
    )
    figures[:, 0] = scores.dice
    patients = {name: number for number, name in enumerate(dict.fromkeys(c.case.patient for c in cases))}
    return Predictions(
        labels=scores.labels.numpy().astype(np.int64).reshape(-1, len(GENES)),
        probabilities=scores.probabilities.numpy().astype(np.float64).reshape(-1, len(GENES)),
        sites=tuple(item.case.site for item in cases),
        modalities=tuple(subset_name(item.case.present) for item in cases),
        split=tuple(splits),
        patients=np.array([patients[item.case.patient] for item in cases], dtype=np.int64),
        genes=settings.genes,
        tumours=figures if Task.SEGMENTATION in settings.tasks else None,
    )
