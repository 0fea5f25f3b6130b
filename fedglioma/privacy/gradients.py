"""What a layer adds to each patient's gradient: its length, and the sum of them, each by its own factor.

There are two exact ways. Gradients that are small beside the map they come from are made for each case at
once and kept. Those that are large beside it are not made at all: their lengths follow from the products of
all pairs of positions (the ghost norm: Goodfellow 2015; X. Li, F. Tramer, P. Liang and T. Hashimoto, "Large
language models can be strong differentially private learners", ICLR 2022), and their sum is one product of
matrices after the factors are known (book-keeping: Z. Bu, Y.-X. Wang, S. Zha and G. Karypis, "Differentially
private optimization on large model at small cost", ICML 2023).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

OPERATIONS_PER_BYTE = 10
"""Operations in the time that a byte takes to memory and back: 5 to 20 on processors and GPUs alike."""

PerCase = dict[str, list[Tensor]]
"""By name of a layer's parameter: the gradient of each case."""


def ghost_is_cheaper(positions: int, inputs: int, outputs: int) -> bool:
    """Return whether a linear map's ghost norm costs less than its gradient, per case.

    The gradient is (outputs, inputs), a sum over the positions. Both ways have to make that sum once. To keep
    it per case is to write it and to read it twice. The ghost norm multiplies all pairs of positions, in
    double precision (a product costs as much as two), from copies of inputs and outputs in that precision.
    With the map, whose positions grow with the cube of the crop, it also stops being worth it in memory.
    """
    ends = inputs + outputs
    ghost = 2 * 2 * positions**2 * ends + OPERATIONS_PER_BYTE * 8 * positions * ends
    kept = OPERATIONS_PER_BYTE * 3 * 4 * inputs * outputs
    return ghost < kept


class Contribution(ABC):
    """A layer's part of the gradients of B cases."""

    @property
    @abstractmethod
    def cases(self) -> int:
        """B."""

    @abstractmethod
    def squares(self) -> Tensor:
        """Return the squared length of each case's part, (B,) float64."""

    @abstractmethod
    def add_to(self, parameters: Mapping[str, nn.Parameter], factors: Sequence[float]) -> None:
        """Add the parts, each times its factor, to the parameters' ``grad``; a factor of 0 leaves a case out.

        What is kept may be used up.
        """

    @abstractmethod
    def per_case(self) -> PerCase:
        """Return the parts themselves."""


@dataclass
class Kept(Contribution):
    """The gradient of each case, made and kept. The tensors are nobody else's."""

    grads: PerCase

    @property
    def cases(self) -> int:
        """Return the number of cases."""
        return len(next(iter(self.grads.values())))

    def squares(self) -> Tensor:
        """Return the squared length of each case's part, (B,) float64."""
        # In double precision: a length that came out too short would let a patient's part be too long.
        rows = [
            torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads])
            for grads in self.grads.values()
        ]
        return torch.stack(rows).square().sum(0)

    def add_to(self, parameters: Mapping[str, nn.Parameter], factors: Sequence[float]) -> None:
        """Add the parts, each times its factor, to the parameters' ``grad``."""
        for name, grads in self.grads.items():
            parameter = parameters[name]
            for grad, factor in zip(grads, factors, strict=True):
                if factor == 0.0:  # a product would not do: 0 * NaN is NaN
                    continue
                if parameter.grad is not None:
                    parameter.grad.add_(grad, alpha=factor)
                else:
                    parameter.grad = laid_out_as(parameter, grad.mul_(factor))

    def per_case(self) -> PerCase:
        """Return the parts themselves."""
        return self.grads


@dataclass
class Ghost(Contribution):
    """The two factors of a linear map's gradient, each case's sum over positions not yet made.

    ``inputs`` (B, T, I) and ``outputs`` (B, T, O): what went into the map at each position, and the gradient
    of what came out. The gradient of ``weight`` is outputs^T inputs, in the weight's shape; that of ``bias``
    the sum of ``outputs`` over positions.
    """

    inputs: Tensor
    outputs: Tensor
    shape: torch.Size
    names: frozenset[str]

    @property
    def cases(self) -> int:
        """Return the number of cases."""
        return len(self.inputs)

    def squares(self) -> Tensor:
        """Return the squared length of each case's part, (B,) float64."""
        # In double precision: where positions cancel, as before a norm, single precision loses the rest.
        outputs = self.outputs.double()
        found = outputs.new_zeros(len(outputs))
        if "weight" in self.names:
            inputs = self.inputs.double()
            if inputs.shape[1] == 1:
                found = inputs.square().sum((1, 2)) * outputs.square().sum((1, 2))
            else:
                found = ((inputs @ inputs.mT) * (outputs @ outputs.mT)).sum((1, 2))
        if "bias" in self.names:
            found = found + outputs.sum(1).square().sum(1)
        return found.clamp(min=0)  # a sum of rounding errors may be below 0; NaN stays

    def rounding(self) -> Tensor:
        """Return how far what is added may be from what was measured, for each case, (B,) float64.

        A bound for a factor of 1, of a sum of products (N. J. Higham, "Accuracy and stability of numerical
        algorithms", 2002, section 3.5): where positions cancel, as before a norm, what is left can be less.
        """
        outputs = torch.linalg.vector_norm(self.outputs, dim=2, dtype=torch.float64)  # (B, T)
        terms = outputs.sum(1) if "bias" in self.names else torch.zeros_like(outputs[:, 0])
        if "weight" in self.names:
            inputs = torch.linalg.vector_norm(self.inputs, dim=2, dtype=torch.float64)
            terms = terms + (outputs * inputs).sum(1)
        number = torch.finfo(self.outputs.dtype)
        bound: Tensor = (outputs.numel() + 2) * number.eps / 2 * terms
        return bound

    def smallest(self) -> Tensor:
        """Return what numbers too small for their type may add to that, whatever the factor, (B,) float64."""
        number = torch.finfo(self.outputs.dtype)
        inputs = torch.linalg.vector_norm(self.inputs, dim=2, dtype=torch.float64).sum(1)
        bound: Tensor = number.smallest_normal * number.eps * self.outputs.shape[2] ** 0.5 * (inputs + 1)
        return bound

    def made(self) -> Kept:
        """Return the gradient of each case, so that what is measured is what is added, to the last bit."""
        kind = self.outputs.dtype
        apart = Ghost(self.inputs.double(), self.outputs.double(), self.shape, self.names).per_case()
        return Kept({name: [grad.to(kind) for grad in grads] for name, grads in apart.items()})

    def add_to(self, parameters: Mapping[str, nn.Parameter], factors: Sequence[float]) -> None:
        """Add the parts, each times its factor, to the parameters' ``grad``, by one product of matrices."""
        inputs, outputs = self.inputs, self.outputs
        counted = [row for row, factor in enumerate(factors) if factor != 0.0]
        if len(counted) < len(factors):
            inputs, outputs = inputs[counted], outputs[counted]
        scale = torch.tensor([factors[row] for row in counted], dtype=outputs.dtype, device=outputs.device)
        scaled = (outputs * scale[:, None, None]).flatten(0, 1)  # (B T, O)
        if "weight" in self.names:
            _add_product(parameters["weight"], scaled, inputs.flatten(0, 1))
        if "bias" in self.names:
            add_grad(parameters["bias"], scaled.sum(0))

    def per_case(self) -> PerCase:
        """Return the parts themselves."""
        found: PerCase = {}
        if "weight" in self.names:
            pairs = zip(self.inputs, self.outputs, strict=True)
            found["weight"] = [(outputs.mT @ inputs).view(self.shape) for inputs, outputs in pairs]
        if "bias" in self.names:
            found["bias"] = [outputs.sum(0) for outputs in self.outputs]
        return found


def _add_product(parameter: nn.Parameter, left: Tensor, right: Tensor) -> None:
    """Add left^T right, (O, I), to a parameter's ``grad``."""
    if parameter.grad is not None and parameter.grad.is_contiguous():
        parameter.grad.view(len(parameter), -1).addmm_(left.mT, right)
    else:
        add_grad(parameter, (left.mT @ right).view(parameter.shape))


def add_grad(parameter: nn.Parameter, grad: Tensor) -> None:
    """Add to a parameter's ``grad``, taking the tensor over where there is none yet."""
    if parameter.grad is not None:
        parameter.grad.add_(grad)
    else:
        parameter.grad = laid_out_as(parameter, grad)


def laid_out_as(parameter: nn.Parameter, grad: Tensor) -> Tensor:
    """Return a gradient in the parameter's layout in memory: optimizers are slow where the two differ."""
    if grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter, requires_grad=False).copy_(grad)


def added_up(contributions: Sequence[Contribution]) -> Contribution:
    """Return the parts of a layer that was used several times as one; all must be of the same cases."""
    if len(contributions) == 1:
        return contributions[0]
    total: PerCase = {}
    for contribution in contributions:
        for name, grads in contribution.per_case().items():
            into = total.setdefault(name, [torch.zeros_like(grad) for grad in grads])
            for mine, grad in zip(into, grads, strict=True):
                mine.add_(grad)
    return Kept(total)
