"""Which numbers of a model travel, in which groups, and how they are packed.

What is shared, and with which weight it enters the mean over the sites:

=====================  =====================================================================
group                  content and aggregation weight
=====================  =====================================================================
``trunk``              every parameter that serves all genes, and the floating-point buffers of
                       batch normalisation (reference preset); weighted by labelled cases
``idh`` ``atrx``       the gene's head and its uncertainty weight s_t; weighted by the cases whose
``codel_1p19q``        label of that gene is known, so a site without them never moves the head
=====================  =====================================================================

What stays at the site and is made anew each round: the optimizer's state. What is never sent: integer
buffers, margins and class weights of the loss (they follow from the class counts of the run).

Each group travels as one flat float32 array, because Flower pays per array, not per byte.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from fedglioma.case import CHANNELS, GENES
from fedglioma.errors import ProtocolError

TRUNK = "trunk"
GROUPS: tuple[str, ...] = (TRUNK, *(gene.value for gene in GENES))

FlatArrays = dict[str, NDArray[np.float32]]
"""One flat array per group, in the order of ``GROUPS``."""


def group_of(name: str) -> str:
    """Return a tensor's group: ``model.heads.<gene>.*`` and ``loss.weights.<gene>.*`` are the gene's."""
    parts = name.split(".")
    if (
        parts[0] in ("model", "loss")
        and len(parts) > 2
        and parts[1] in ("heads", "weights")
        and parts[2] in GROUPS
    ):
        return parts[2]
    return TRUNK


def shared_state(model: nn.Module, loss: nn.Module) -> dict[str, Tensor]:
    """Return what travels, by name, in a fixed order: parameters, float buffers, loss parameters.

    The tensors are the module's own, not copies.
    """
    state = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    persistent = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in persistent and buffer.is_floating_point():
            state[f"model.{name}"] = buffer.detach()
    state.update({f"loss.{name}": parameter.detach() for name, parameter in loss.named_parameters()})
    return state


@dataclass(frozen=True)
class Layout:
    """Names and shapes of everything that travels, in order; equal digests mean exchangeable weights."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, model: nn.Module, loss: nn.Module) -> "Layout":
        """Return the layout of a model and its loss."""
        return cls(tuple((name, tuple(tensor.shape)) for name, tensor in shared_state(model, loss).items()))

    @property
    def digest(self) -> str:
        """sha256 over names, shapes, channel order and task order."""
        content = [self.shapes, [m.value for m in CHANNELS], [g.value for g in GENES], "float32"]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers per group."""
        sizes = dict.fromkeys(GROUPS, 0)
        for name, shape in self.shapes:
            sizes[group_of(name)] += int(np.prod(shape))
        return sizes

    @property
    def payload_bytes(self) -> int:
        """Bytes of one set of weights as it travels."""
        return 4 * sum(self.sizes.values())

    def empty(self) -> FlatArrays:
        """Return flat arrays of the right sizes, their content undefined."""
        return {group: np.empty(size, np.float32) for group, size in self.sizes.items()}

    def named(self, arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Return views of the flat arrays under their tensors' names and shapes.

        Raises
        ------
        ProtocolError
            A group is missing, has another dtype or another size.
        """
        for group, size in self.sizes.items():
            array = arrays.get(group)
            if array is None or array.dtype != np.float32 or array.shape != (size,):
                found = "missing" if array is None else f"{array.dtype} {array.shape}"
                raise ProtocolError(f"weights: group {group} should be float32 ({size},), found {found}")
        start = dict.fromkeys(GROUPS, 0)
        views = {}
        for name, shape in self.shapes:
            group, size = group_of(name), int(np.prod(shape))
            views[name] = arrays[group][start[group] : start[group] + size].reshape(shape)
            start[group] += size
        return views


def pack(model: nn.Module, loss: nn.Module) -> FlatArrays:
    """Return copies of the shared tensors as one flat float32 array per group."""
    layout = Layout.of(model, loss)
    arrays = layout.empty()
    views = layout.named(arrays)
    for name, tensor in shared_state(model, loss).items():
        views[name][...] = tensor.cpu().numpy()
    return arrays


def unpack(arrays: Mapping[str, NDArray[np.float32]], model: nn.Module, loss: nn.Module) -> None:
    """Copy flat arrays into a model and its loss.

    Raises
    ------
    ProtocolError
        The arrays are not of this model.
    """
    views = Layout.of(model, loss).named(arrays)
    with torch.no_grad():
        for name, tensor in shared_state(model, loss).items():
            tensor.copy_(torch.from_numpy(np.array(views[name])))


def to_record(arrays: Mapping[str, NDArray[np.float32]]) -> ArrayRecord:
    """Return flat arrays as Flower's record."""
    return ArrayRecord({group: Array(np.ascontiguousarray(arrays[group])) for group in GROUPS})


def from_record(record: ArrayRecord) -> FlatArrays:
    """Return flat arrays from Flower's record.

    Raises
    ------
    ProtocolError
        The record holds other groups, or something that is not a flat float32 array.
    """
    if set(record) != set(GROUPS):
        raise ProtocolError(
            f"weights: groups {', '.join(sorted(record))} where {', '.join(GROUPS)} are expected"
        )
    arrays = {}
    for group in GROUPS:
        try:
            array = record[group].numpy()
        except Exception as error:  # a hostile header makes NumPy raise nearly anything
            raise ProtocolError(
                f"weights: group {group} cannot be decoded ({type(error).__name__})"
            ) from None
        if array.dtype != np.float32 or array.ndim != 1:
            raise ProtocolError(
                f"weights: group {group} is {array.dtype} {array.shape}, not a flat float32 array"
            )
        arrays[group] = array
    return arrays
