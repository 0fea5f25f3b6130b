"""What a network says of one prepared case: probabilities, and where in the case's array the tumour is."""

from dataclasses import dataclass

import numpy as np
import torch

from fedglioma.case import GENES, Gene, Task
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.volume import FloatArray
from fedglioma.data.window import centre_starts, put_back, window
from fedglioma.errors import DataError, FedGliomaError
from fedglioma_client.predict_model import Predictor


@dataclass(frozen=True)
class Answer:
    """A network's answer to one case.

    ``markers`` has the probability of mutant or codeleted of each marker that the network is asked.
    ``tumour`` is the tumour's probability on the prepared array's voxels, (D, H, W), 0 where the network did
    not look; None where it outlines none. ``brain_read`` is the share of the brain that it saw.
    """

    markers: dict[Gene, float]
    tumour: FloatArray | None
    brain_read: float


@torch.no_grad()
def read_case(predictor: Predictor, prepared: PreparedCase) -> Answer:
    """Return the answer to a case whose array is on the model's own scale.

    Raises
    ------
    DataError
        The prepared volume is gone or damaged, or the answer is not a finite number.
    FedGliomaError
        The device's memory is too small.
    """
    settings = predictor.settings
    dataset = CaseDataset([prepared], settings.crop, whole=settings.sliding)
    sample = dataset[0]
    try:
        outputs = predictor.reader.read(
            predictor.learner.model,
            sample.image[None].to(predictor.device),
            sample.present[None].to(predictor.device),
        )
        found = {name: value.float().softmax(1)[0, 1].cpu().numpy() for name, value in outputs.items()}
    except torch.OutOfMemoryError:
        raise FedGliomaError(
            f"{predictor.device}: its memory is too small for this model; give --device cpu"
        ) from None
    if not all(np.isfinite(value).all() for value in found.values()):
        raise DataError(
            "the network's answer is not a finite number; is the model the one that was released?"
        )
    brain = (np.load(prepared.array, mmap_mode="r", allow_pickle=False) != 0).any(axis=0)
    box = tuple(sample.image.shape[1:])
    looked, _ = window(brain.shape, centre_starts(brain.shape, box), box)
    tumour = found.get(Task.SEGMENTATION)
    return Answer(
        markers={gene: float(found[gene]) for gene in GENES if gene in found},
        tumour=None if tumour is None else put_back(tumour, brain.shape),
        brain_read=int(brain[looked].sum()) / max(int(brain.sum()), 1),
    )
