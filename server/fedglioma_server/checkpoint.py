"""Global weights per round on disk: written whole or not at all, checked before they are used.

``checkpoints/round-0007.safetensors`` holds the shared tensors by name; its metadata carry what is
needed to refuse a foreign or damaged file. The newest and the selected round are kept.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedglioma.case import CHANNELS, GENES
from fedglioma.errors import ProtocolError
from fedglioma.weights import GROUPS, FlatArrays, Layout

NAME = re.compile(r"round-(\d{4,})\.safetensors")


def write_safetensors(
    path: Path, tensors: Mapping[str, NDArray[np.float32]], metadata: dict[str, str]
) -> None:
    """Write tensors and metadata under a temporary name, flush to disk, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(
                save({name: np.asarray(value, order="C") for name, value in tensors.items()}, metadata)
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_safetensors(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Return tensors and metadata of a file.

    Raises
    ------
    ProtocolError
        The file is absent, truncated or not safetensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ProtocolError(f"{path}: not a readable safetensors file ({type(error).__name__})") from None


def arrays_of(tensors: Mapping[str, NDArray[np.float32]], layout: Layout, path: Path) -> FlatArrays:
    """Return a file's tensors as flat arrays.

    Raises
    ------
    ProtocolError
        A tensor is missing or has another shape or type.
    """
    arrays = layout.empty()
    for name, view in layout.named(arrays).items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != view.shape or tensor.dtype != np.float32:
            found = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise ProtocolError(f"{path}: {name} should be float32 {view.shape}, found {found}")
        view[...] = tensor
    return arrays


def digest_of(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """Return sha256 over the groups' bytes in their fixed order."""
    digest = hashlib.sha256()
    for group in GROUPS:
        digest.update(np.ascontiguousarray(arrays[group]).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    layout: Layout

    def path(self, number: int) -> Path:
        """Return where the weights after a round lie."""
        return self.folder / f"round-{number:04d}.safetensors"

    def save(self, number: int, arrays: FlatArrays) -> None:
        """Write the weights after a round."""
        metadata = {
            "round": str(number),
            "layout": self.layout.digest,
            "digest": digest_of(arrays),
            "channels": json.dumps([m.value for m in CHANNELS]),
            "genes": json.dumps([g.value for g in GENES]),
        }
        write_safetensors(self.path(number), self.layout.named(arrays), metadata)

    def load(self, number: int) -> FlatArrays:
        """Return the weights after a round.

        Raises
        ------
        ProtocolError
            The file is absent, damaged, or of another network.
        """
        path = self.path(number)
        tensors, metadata = read_safetensors(path)
        if metadata.get("layout") != self.layout.digest:
            raise ProtocolError(f"{path}: holds the weights of another network")
        if metadata.get("round") != str(number):
            raise ProtocolError(f"{path}: holds the weights of round {metadata.get('round')}")
        arrays = arrays_of(tensors, self.layout, path)
        if digest_of(arrays) != metadata.get("digest"):
            raise ProtocolError(f"{path}: damaged, its content does not match its digest")
        return arrays

    def rounds(self) -> list[int]:
        """Return the rounds that have a file, oldest first."""
        found = (NAME.fullmatch(path.name) for path in self.folder.glob("round-*.safetensors"))
        return sorted(int(match.group(1)) for match in found if match)

    def prune(self, keep: set[int]) -> None:
        """Remove the files of all other rounds, and whatever an interrupted write left behind."""
        for number in self.rounds():
            if number not in keep:
                self.path(number).unlink(missing_ok=True)
        for part in self.folder.glob(".round-*.part"):
            part.unlink(missing_ok=True)
