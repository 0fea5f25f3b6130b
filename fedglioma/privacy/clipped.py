"""Sums of clipped gradients, a patient's each, exact and in one backward pass.

DP-SGD (M. Abadi et al., "Deep learning with differential privacy", CCS 2016, algorithm 1) needs the gradient
of every patient in a batch, cut to a length, before they are added. A backward pass adds first. Here each
layer with trained parameters passes the gradient on as ever, but what belongs to its parameters it keeps
apart for each patient (``layers.py``), the large layers as two factors instead of a product
(``gradients.py``). When the pass is over the lengths are known, and the sum of the clipped gradients is made
from what was kept: no second pass, and no gradient of the whole network per patient in memory.
"""

import math
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from fedglioma.config.privacy import Clipping
from fedglioma.errors import PrivacyError
from fedglioma.privacy.gradients import Contribution, Ghost, added_up
from fedglioma.privacy.layers import Passed, Rule, rule_for
from fedglioma.privacy.network import followed_layers, require_private

EXCESS: Final = 1e-4
"""By what part rounding may make a clipped gradient longer than ``clip_norm``; noise has to be for that."""
LONGEST: Final = 1e30
"""A gradient so many times longer than ``clip_norm`` counts as not finite: its factor would be no number."""


class ClippedGradients:
    """While open, ``backward`` leaves in ``grad`` the sum over a batch of each case's clipped gradient.

    ::

        with ClippedGradients(model, clip_norm=1.0) as clipped:
            for batch in physical_batches:      # of one step; none at all is a step of noise alone
                clipped.backward(losses_of(model(batch)))
            clipped.fill()

    The first axis of every layer's input counts the cases, as in all networks of this package; a layer that
    sees another number of rows is refused. A layer may be used several times. A parameter that is used
    otherwise than by its own layer is refused. Frozen parameters are left alone, and a trained one that a
    case did not reach has gradient 0 there. The network is what it was before as soon as the context is left.

    ``clipping`` ``flat`` cuts a case's whole gradient to the length ``clip_norm``. ``per_layer`` cuts the
    part of each of the L layers with trained parameters to ``clip_norm / sqrt(L)``, so that the whole is at
    most ``clip_norm`` long again: the noise and what it protects are the same in both.

    A case whose gradient is not finite counts as zero and is counted in ``not_finite``: an error that one
    patient alone can cause would tell of that patient. The number must not leave the site either.

    Whatever the weights, a case's clipped gradient is at most ``clip_norm`` times 1 + ``EXCESS`` long: where
    a layer's two factors cancel so much that its length would not be sure, its gradients are made.

    Parameters
    ----------
    module : module
        Network in training mode, in single or double precision, on any device, channels last or not.
    clip_norm : float
        Largest Euclidean length of a case's gradient, C in the paper.
    clipping : {"flat", "per_layer"}
    ghost : bool, optional
        Force one way for convolutions and linear maps instead of the cheaper for each; for tests.

    Raises
    ------
    PrivacyError
        The network has a layer that mixes patients or cannot be followed; see ``require_private``.
    """

    def __init__(
        self, module: nn.Module, *, clip_norm: float, clipping: Clipping = "flat", ghost: bool | None = None
    ) -> None:
        if not (0 < clip_norm < math.inf):
            raise PrivacyError(f"clip_norm: {clip_norm}: gradients are clipped to a length above 0")
        require_private(module)
        self.clip_norm = clip_norm
        self.clipping = clipping
        self.not_finite = 0
        self._module = module
        self._layers = [
            _Followed(path, layer, rule_for(layer, ghost=ghost))
            for path, layer in followed_layers(module).items()
        ]
        if not self._layers:
            raise PrivacyError("private training: the network has no trained parameter")
        self._versions: list[tuple[str, Tensor, int]] = []

    def __enter__(self) -> Self:
        if any("forward" in vars(followed.layer) for followed in self._layers):
            raise PrivacyError("private training: the network is followed already: leave that context first")
        self._versions = [(name, buffer, buffer._version) for name, buffer in self._module.named_buffers()]
        for followed in self._layers:
            followed.attach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for followed in self._layers:
            followed.detach()

    def backward(self, losses: Tensor) -> Tensor:
        """Add the sum of the cases' clipped gradients to ``grad``; return their lengths before, (B,) float64.

        Parameters
        ----------
        losses : Tensor, shape (B,)
            Of a forward pass inside the context. Each must depend on its own case alone. B may be 0.

        Raises
        ------
        PrivacyError
            The losses are no row of one number per case, or the network did what cannot be followed.
        """
        if losses.ndim != 1:
            raise PrivacyError(f"losses of shape {tuple(losses.shape)}: one number per patient is needed")
        try:
            if len(losses):
                losses.sum().backward()  # type: ignore[no-untyped-call]
                self._require_same_buffers()
            with torch.no_grad():
                return self._take(len(losses), losses.device)
        finally:
            for followed in self._layers:
                followed.contributions.clear()

    def fill(self) -> None:
        """Give every trained parameter without a gradient one of zeros, as an empty batch needs it."""
        for followed in self._layers:
            for parameter in followed.parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def _take(self, cases: int, device: torch.device) -> Tensor:
        used = [followed for followed in self._layers if followed.contributions and cases]
        taken = [followed.take(cases) for followed in used]
        if not taken:
            self.fill()
            return torch.zeros(cases, dtype=torch.float64, device=device)
        squares = torch.stack([part.squares() for part in taken])  # (layers, B)
        limit = self.clip_norm if self.clipping == "flat" else self.clip_norm / math.sqrt(len(self._layers))
        while self._make_unsure(taken, squares, limit):
            continue  # a length that was wrong may have hidden another's
        lengths = squares.sum(0).sqrt()
        finite = lengths < LONGEST * limit
        self.not_finite += cases - int(finite.sum())
        factors = (limit / self._lengths_cut(squares)).clamp(max=1.0)
        # Else a clipped gradient would be longer than the bound by what rounding adds.
        eps = torch.finfo(next(iter(used[0].parameters.values())).dtype).eps
        factors = torch.where(factors < 1.0, factors * (1 - 8 * eps), factors)
        factors = torch.where(finite, factors, 0.0)
        for followed, part, row in zip(used, taken, factors.tolist(), strict=True):
            part.add_to(followed.parameters, row)
        self.fill()
        return lengths

    def _lengths_cut(self, squares: Tensor) -> Tensor:
        """Return the lengths that decide the factors, (layers, B): of the whole gradient, or of each part."""
        if self.clipping == "flat":
            return squares.sum(0).sqrt().expand_as(squares)
        return squares.sqrt()

    def _make_unsure(self, taken: list[Contribution], squares: Tensor, limit: float) -> bool:
        """Make the gradients of layers whose lengths rounding could falsify, and measure them; whether any.

        The error is kept to ``EXCESS`` of the length or of the limit, whichever is more: then that of what is
        added, once cut, is at most that part of the limit. The lengths of ghosts are better still then.
        """
        lengths = self._lengths_cut(squares)
        usable = squares.sum(0).isfinite()
        share = EXCESS / math.sqrt(len(taken)) if self.clipping == "flat" else EXCESS
        found = False
        for row, part in enumerate(taken):
            if not isinstance(part, Ghost):
                continue
            wrong = part.rounding() > share / 2 * lengths[row].clamp(min=limit)
            wrong |= part.smallest() > share / 2 * limit
            if (wrong & usable).any():
                taken[row] = part.made()
                squares[row] = taken[row].squares()
                found = True
        return found

    def _require_same_buffers(self) -> None:
        for name, buffer, version in self._versions:
            if buffer._version != version:
                raise PrivacyError(
                    f"private training: {name} changed with the patients' images, and no noise protects it: "
                    "freeze what keeps statistics"
                )


class _Followed:
    """A layer, what stands in for its forward, and what it contributed."""

    def __init__(self, path: str, layer: nn.Module, rule: Rule) -> None:
        self.path = path
        self.layer = layer
        self.rule = rule
        self.parameters = {
            name: parameter
            for name, parameter in layer.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        self.names = frozenset(self.parameters)
        self.contributions: list[Contribution] = []
        self._hooks: list[Any] = []

    def attach(self) -> None:
        self.layer.forward = self._forward
        # Reached only by a way around the layer: what came that way would not be clipped.
        self._hooks = [
            parameter.register_hook(self._refuse)  # type: ignore[no-untyped-call]
            for parameter in self.parameters.values()
        ]

    def detach(self) -> None:
        vars(self.layer).pop("forward", None)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.contributions.clear()

    def take(self, cases: int) -> Contribution:
        """Return the contribution of all uses in the pass, of as many cases as there are."""
        for contribution in self.contributions:
            if contribution.cases != cases:
                raise PrivacyError(
                    f"private training: {self.path} saw {contribution.cases} rows for {cases} patients: the "
                    "first axis of what a layer sees must count the patients"
                )
        found = added_up(self.contributions)
        self.contributions.clear()
        return found

    def _forward(self, *inputs: Any, **named: Any) -> Tensor:
        if named or len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            raise PrivacyError(
                f"private training: {self.path} is given more than one tensor: it cannot be followed"
            )
        x: Tensor = inputs[0]
        if not torch.is_grad_enabled() or len(x) == 0:
            out: Tensor = type(self.layer).forward(self.layer, x)
            return out.detach() if len(x) == 0 else out
        if torch.is_autocast_enabled(x.device.type):
            raise PrivacyError("private training: gradients are taken in float32: switch autocast off")
        if x.ndim < _LEAST_AXES.get(type(self.layer), 2):
            raise PrivacyError(
                f"private training: {self.path} is given {tuple(x.shape)}, without an axis of patients"
            )
        anchor = torch.zeros((), device=x.device, requires_grad=True)
        followed: Tensor = _Follow.apply(anchor, x, self)  # type: ignore[no-untyped-call]
        return followed

    def _refuse(self, _grad: Tensor) -> Tensor:
        raise PrivacyError(
            f"private training: a parameter of {self.path} is used otherwise than by its own layer: such a "
            "gradient cannot be clipped"
        )


_LEAST_AXES: dict[type[nn.Module], int] = {
    **{nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5},
    **{nn.ConvTranspose1d: 3, nn.ConvTranspose2d: 4, nn.ConvTranspose3d: 5, nn.InstanceNorm3d: 5},
}


class _Follow(torch.autograd.Function):
    """A layer in the graph without its parameters.

    The anchor makes the output part of the graph where the input is none, as an image is.
    """

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, x: Tensor, followed: _Followed) -> Tensor:
        out, kept = followed.rule.forward(x)
        ctx.followed = followed
        ctx.save_for_backward(x, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None]:
        followed: _Followed = ctx.followed
        x, *kept = ctx.saved_tensors
        use = Passed(x, tuple(kept), grad, ctx.needs_input_grad[1], followed.names)
        dx, contribution = followed.rule.backward(use)
        followed.contributions.append(contribution)
        return None, dx, None
