"""Which numbers of a model travel, in which groups, and how they are packed.

What is shared, and with which weight it enters the mean over the sites:

=====================  =====================================================================
group                  content and aggregation weight
=====================  =====================================================================
``trunk``              every parameter that serves all tasks, and the floating-point buffers of
                       batch normalisation (reference preset); weighted by the cases that have
                       anything to train on
``idh`` ``atrx``       the gene's head and its uncertainty weight s_t; weighted by the cases whose
``codel_1p19q``        label of that gene is known, so a site without them never moves the head
``segmentation``       the layers that outline the tumour alone; weighted by the cases with a mask
=====================  =====================================================================

What stays at the site and is made anew each round: the optimizer's state. What is never sent: integer
buffers, margins and class weights of the loss (they follow from the class counts of the run), and with
FedBN the batch and group normalisation layers.

Each group travels as one flat array, empty where the network has nothing in it, because Flower pays per
array, not per byte; of which numbers, ``payload.py`` says.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from fedglioma.case import CHANNELS, GENES, TASKS
from fedglioma.errors import ProtocolError
from fedglioma.machine import joined

TRUNK = "trunk"
GROUPS: tuple[str, ...] = (TRUNK, *(task.value for task in TASKS))

FlatArrays = dict[str, NDArray[np.float32]]
"""One flat array per group, in the order of ``GROUPS``."""
Packed = dict[str, NDArray[Any]]
"""The same as it travels: float32, or what ``payload.py`` makes of it."""
Forms = Mapping[str, tuple[str, int]]
"""What is expected of each group on the road: dtype and number of elements."""

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
_LOCAL = "stays_local"
_HEADER_BYTES = 4096
"""More than the header of any flat array; a longer one is hostile."""


def group_of(name: str) -> str:
    """Return a tensor's group: ``model.heads.<task>.*`` and ``loss.weights.<task>.*`` are the task's."""
    parts = name.split(".")
    if (
        parts[0] in ("model", "loss")
        and len(parts) > 2
        and parts[1] in ("heads", "weights")
        and parts[2] in GROUPS
    ):
        return parts[2]
    return TRUNK


def keep_norms_local(model: nn.Module) -> None:
    """Mark the batch and group normalisation layers as each site's own (FedBN); layer norms stay shared."""
    for module in model.modules():
        if isinstance(module, _NORMS):
            setattr(module, _LOCAL, True)


def local_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what stays at a site, by name: all tensors of the marked layers, counters included.

    The tensors are the module's own, not copies.
    """
    return {
        f"model.{prefix}.{name}": tensor.detach()
        for prefix, module in model.named_modules()
        if getattr(module, _LOCAL, False)
        for name, tensor in module.state_dict().items()
    }


def shared_state(model: nn.Module, loss: nn.Module, *, whole: bool = False) -> dict[str, Tensor]:
    """Return what travels, by name, in a fixed order: parameters, float buffers, loss parameters.

    ``whole`` adds what stays local, for a model that is released. The tensors are the module's own, not
    copies.
    """
    state = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    persistent = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in persistent and buffer.is_floating_point():
            state[f"model.{name}"] = buffer.detach()
    if not whole:
        for name in local_state(model):
            state.pop(name, None)
    state.update({f"loss.{name}": parameter.detach() for name, parameter in loss.named_parameters()})
    return state


@dataclass(frozen=True)
class Layout:
    """Names and shapes of everything that travels, in order; equal digests mean exchangeable weights."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, model: nn.Module, loss: nn.Module, *, whole: bool = False) -> "Layout":
        """Return the layout of a model and its loss."""
        state = shared_state(model, loss, whole=whole)
        return cls(tuple((name, tuple(tensor.shape)) for name, tensor in state.items()))

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
        """Bytes of one set of weights as float32."""
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

    def flat(self, tensors: Mapping[str, NDArray[Any]], place: str) -> FlatArrays:
        """Return named tensors as flat arrays; ``place`` is what an error names.

        Raises
        ------
        ProtocolError
            A tensor is missing or has another shape or type.
        """
        arrays = self.empty()
        for name, view in self.named(arrays).items():
            tensor = tensors.get(name)
            if tensor is None or tensor.shape != view.shape or tensor.dtype != np.float32:
                found = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
                raise ProtocolError(f"{place}: {name} should be float32 {view.shape}, found {found}")
            view[...] = tensor
        return arrays


def pack(model: nn.Module, loss: nn.Module, *, whole: bool = False) -> FlatArrays:
    """Return copies of the shared tensors as one flat float32 array per group."""
    layout = Layout.of(model, loss, whole=whole)
    arrays = layout.empty()
    views = layout.named(arrays)
    for name, tensor in shared_state(model, loss, whole=whole).items():
        views[name][...] = tensor.cpu().numpy()
    return arrays


def unpack(
    arrays: Mapping[str, NDArray[np.float32]], model: nn.Module, loss: nn.Module, *, whole: bool = False
) -> None:
    """Copy flat arrays into a model and its loss.

    Raises
    ------
    ProtocolError
        The arrays are not of this model.
    """
    views = Layout.of(model, loss, whole=whole).named(arrays)
    with torch.no_grad():
        for name, tensor in shared_state(model, loss, whole=whole).items():
            tensor.copy_(torch.from_numpy(np.array(views[name])))


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return sha256 over the groups' bytes in their fixed order, of weights or of what travels."""
    digest = hashlib.sha256()
    for group in GROUPS:
        digest.update(np.ascontiguousarray(arrays[group]).data)
    return digest.hexdigest()


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return flat arrays as Flower's record."""
    record = ArrayRecord()
    for group in GROUPS:
        array = np.ascontiguousarray(arrays[group])
        header = BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        # One copy; numpy.save into a buffer, as Flower does it, makes two.
        data = joined((header.getvalue(), array.data))
        record[group] = Array(str(array.dtype), array.shape, "numpy.ndarray", data)
    return record


def from_record(record: ArrayRecord, forms: Forms | None = None) -> Packed:
    """Return flat arrays from Flower's record: read-only views of its bytes, nothing is copied.

    Parameters
    ----------
    forms : mapping, optional
        What each group must be; without it float32 of any size.

    Raises
    ------
    ProtocolError
        The record holds other groups, or arrays of another type or size.
    """
    if set(record) != set(GROUPS):
        raise ProtocolError(
            f"weights: groups {', '.join(sorted(record))} where {', '.join(GROUPS)} are expected"
        )
    return {group: _view(group, record[group], forms[group] if forms else None) for group in GROUPS}


def _view(group: str, array: Array, form: tuple[str, int] | None) -> NDArray[Any]:
    whole = memoryview(array.data)
    header = BytesIO(bytes(whole[:_HEADER_BYTES]))
    try:
        version = np.lib.format.read_magic(header)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](header)
        body = whole[header.tell() :]
        if array.stype != "numpy.ndarray" or dtype.hasobject or body.nbytes != prod(shape) * dtype.itemsize:
            raise ValueError("not the bytes of a plain array")
    except Exception as error:  # a hostile header makes NumPy raise nearly anything
        raise ProtocolError(f"weights: group {group} cannot be decoded ({type(error).__name__})") from None
    expected = ("float32", shape[0] if len(shape) == 1 else -1) if form is None else form
    if dtype != np.dtype(expected[0]).newbyteorder("<") or shape != (expected[1],):
        size = "of one axis" if form is None else f"({form[1]},)"
        raise ProtocolError(f"weights: group {group} should be {expected[0]} {size}, found {dtype} {shape}")
    return np.frombuffer(body, dtype)
