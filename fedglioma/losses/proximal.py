"""The pull towards the global weights that FedProx adds to a site's loss."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedglioma.errors import ConfigError, ProtocolError


def proximal_penalty(parameters: Iterable[Tensor], anchors: Iterable[Tensor], mu: float) -> Tensor:
    """Return mu / 2 times the squared distance of the parameters from the anchors, a scalar.

    Parameters
    ----------
    parameters : iterable of Tensor
        The site's weights, in a fixed order.
    anchors : iterable of Tensor
        The global weights that the round began with, in the same order; no gradient reaches them.
    mu : float
        Strength of the pull; 0 is FedAvg.

    Raises
    ------
    ConfigError
        ``mu`` is negative.
    ProtocolError
        The two do not have the same shapes.

    References
    ----------
    Li et al. (2020), Federated optimization in heterogeneous networks, equation 2.
    """
    if not mu >= 0:
        raise ConfigError(f"mu: {mu}: the proximal term needs a number of at least 0")
    weights, origin = list(parameters), list(anchors)
    if [w.shape for w in weights] != [a.shape for a in origin]:
        raise ProtocolError("proximal term: the site's weights and the global ones differ in shape or number")
    if not weights:
        return torch.zeros(())
    squares = [(w - a.detach()).square().sum() for w, a in zip(weights, origin, strict=True)]
    return (mu / 2) * torch.stack(squares).sum()
