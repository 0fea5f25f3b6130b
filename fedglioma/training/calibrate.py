"""Statistics of batch normalisation from images, for a network whose own stayed at the sites (FedBN)."""

import logging
from collections.abc import Iterable

import torch
from torch import nn

from fedglioma.data.dataset import Sample

logger = logging.getLogger(__name__)

_BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def estimate_norms(model: nn.Module, batches: Iterable[Sample], *, device: torch.device) -> int:
    """Return how many batches the running means and variances were taken from; nothing else changes.

    They are the plain average over the batches of what each batch has (Ioffe and Szegedy 2015, section
    3.1; ``torch.optim.swa_utils.update_bn``). A batch of one case is left out: a layer that is down to one
    voxel would have nothing to take a variance of. Without batches they stay as in an untrained network.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return 0
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    used = 0
    try:
        for image, present, *_ in batches:
            if len(image) > 1:
                model(image.to(device), present.to(device))
                used += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
    if not used:
        logger.warning("batch normalisation: no two held-out cases to take statistics from")
    return used
