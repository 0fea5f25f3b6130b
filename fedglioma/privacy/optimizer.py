"""The optimizer of DP-SGD: noise on the sum of clipped gradients, then any optimizer's step."""

import math
from typing import Any

import torch
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed

from fedglioma.errors import PrivacyError
from fedglioma.privacy.clipped import EXCESS
from fedglioma.privacy.noise_source import NoiseSource
from fedglioma.privacy.secret import SecretRandom


def margin(cases: float) -> float:
    """Return how much longer than the clip norm a sum's change by one patient may be through rounding.

    A clipped gradient itself by ``EXCESS``; and where one is added, every later addition of the step may
    round otherwise, each by twice the unit of single precision times a sum as long as its cases at most.

    Parameters
    ----------
    cases : float
        Expected in a step, as it is published; there may be more by chance, six deviations at most.
    """
    most = cases + 6 * math.sqrt(cases) + 6
    return 1 + EXCESS + most**2 * 2.0**-24


class PrivateOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus' optimizer for gradients that were clipped already, with noise from a secret stream.

    A step takes from ``grad`` the sum that ``ClippedGradients`` left there, adds normal noise of standard
    deviation ``noise_multiplier * clip_norm`` to every number (and a ``margin`` for rounding), divides by the
    expected number of cases, which is published, and not by how many there were, and hands it on. Also where
    no patient took part.
    Sum and noise are added in the gradient's own memory; Opacus would need three times as much.

    Parameters
    ----------
    optimizer : Optimizer
        Of exactly the trained parameters; its weight decay depends on no data.
    noise_multiplier, clip_norm : float
    expected_cases : float
        Sampling rate times the published number of patients.
    secret : SecretRandom, optional
        By default a new one.

    Raises
    ------
    PrivacyError
        A number is out of range.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip_norm: float,
        expected_cases: float,
        secret: SecretRandom | None = None,
    ) -> None:
        for name, value in (
            ("noise_multiplier", noise_multiplier),
            ("clip_norm", clip_norm),
            ("expected cases in a step", expected_cases),
        ):
            if not 0 < value < float("inf"):
                raise PrivacyError(f"{name}: {value}: a number above 0 is needed")
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=expected_cases,
            loss_reduction="mean",
        )
        self._noise = NoiseSource(secret or SecretRandom())
        self._deviation = noise_multiplier * clip_norm * margin(expected_cases)

    def accumulate(self) -> None:
        """Take the sums from ``grad``: physical batches have been added up there already."""
        for parameter in self.params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.summed_grad = parameter.grad

    def add_noise(self) -> None:
        """Add the noise to the sums, in place."""
        for parameter in self.params:
            _check_processed_flag(parameter.summed_grad)
            self._noise.add_to(parameter.summed_grad, self._deviation)
            _mark_as_processed(parameter.summed_grad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients; always, because a gradient must not be used for two steps."""
        super().zero_grad(set_to_none=True)

    def step(self, closure: Any = None) -> None:
        """Move the weights once."""
        if closure is not None:
            raise PrivacyError("private training: a step takes no closure: gradients are clipped before it")
        super().step()
