"""Global weights per round on disk: written whole or not at all, checked before they are used.

``checkpoints/round-0007.safetensors`` holds the shared tensors by name; its metadata carry what is
needed to refuse a foreign or damaged file. Where the strategy remembers something between rounds,
``round-0007.state.safetensors`` holds that, and is written first, so that weights without it never count.
So does ``round-0007.average.safetensors``, the running mean of the weights where a run keeps one.
The newest and the selected round are kept.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fedglioma.case import CHANNELS, GENES
from fedglioma.errors import ProtocolError
from fedglioma.tensorfile import read_safetensors, write_safetensors
from fedglioma.weights import FlatArrays, Layout, digest_of
from fedglioma_server.combiner import ServerState

NAME = re.compile(r"round-(\d{4,})\.safetensors")
BESIDE = re.compile(r"round-(\d{4,})\.(state|average)\.safetensors")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    layout: Layout

    def path(self, number: int) -> Path:
        """Return where the weights after a round lie."""
        return self.folder / f"round-{number:04d}.safetensors"

    def save(self, number: int, arrays: FlatArrays) -> str:
        """Write the weights after a round and return their digest."""
        return self._save(self.path(number), number, arrays)

    def save_average(self, number: int, arrays: FlatArrays) -> None:
        """Write the running mean of the weights after a round."""
        self._save(self.average_path(number), number, arrays)

    def _save(self, path: Path, number: int, arrays: FlatArrays) -> str:
        metadata = {
            "round": str(number),
            "layout": self.layout.digest,
            "channels": json.dumps([m.value for m in CHANNELS]),
            "genes": json.dumps([g.value for g in GENES]),
        }
        with ThreadPoolExecutor(1) as beside:  # hashing takes as long as writing
            digest = beside.submit(digest_of, arrays)
            write_safetensors(path, self.layout.named(arrays), metadata, digest)
        return digest.result()

    def load(self, number: int) -> FlatArrays:
        """Return the weights after a round.

        Raises
        ------
        ProtocolError
            The file is absent, damaged, or of another network.
        """
        return self._load(self.path(number), number)

    def load_average(self, number: int) -> FlatArrays:
        """Return the running mean of the weights after a round.

        Raises
        ------
        ProtocolError
            The file is absent, damaged, or of another network.
        """
        return self._load(self.average_path(number), number)

    def _load(self, path: Path, number: int) -> FlatArrays:
        tensors, metadata = read_safetensors(path)
        if metadata.get("layout") != self.layout.digest:
            raise ProtocolError(f"{path}: holds the weights of another network")
        if metadata.get("round") != str(number):
            raise ProtocolError(f"{path}: holds the weights of round {metadata.get('round')}")
        arrays = self.layout.flat(tensors, str(path))
        if digest_of(arrays) != metadata.get("digest"):
            raise ProtocolError(f"{path}: damaged, its content does not match its digest")
        return arrays

    def average_path(self, number: int) -> Path:
        """Return where the running mean of the weights after a round lies."""
        return self.folder / f"round-{number:04d}.average.safetensors"

    def state_path(self, number: int) -> Path:
        """Return where what the strategy remembers after a round lies."""
        return self.folder / f"round-{number:04d}.state.safetensors"

    def save_state(self, number: int, state: ServerState) -> str:
        """Write what the strategy remembers after a round and return its digest."""
        digest = state.digest()
        metadata = {
            "round": str(number),
            "layout": self.layout.digest,
            "counts": json.dumps(state.counts),
            "digest": digest,
        }
        write_safetensors(self.state_path(number), state.tensors, metadata)
        return digest

    def load_state(self, number: int) -> ServerState | None:
        """Return what the strategy remembered after a round; None where nothing was saved.

        Raises
        ------
        ProtocolError
            The file is damaged, or of another network or round.
        """
        path = self.state_path(number)
        if not path.exists():
            return None
        tensors, metadata = read_safetensors(path)
        if metadata.get("layout") != self.layout.digest or metadata.get("round") != str(number):
            raise ProtocolError(f"{path}: holds the state of another network or round")
        sizes = self.layout.sizes
        if any(tensor.shape != (sizes.get(name.split(".")[-1], -1),) for name, tensor in tensors.items()):
            raise ProtocolError(f"{path}: an array has another size than the weights")
        state = ServerState(tensors, json.loads(metadata.get("counts", "{}")))
        if state.digest() != metadata.get("digest"):
            raise ProtocolError(f"{path}: damaged, its content does not match its digest")
        return state

    def rounds(self) -> list[int]:
        """Return the rounds that have a file, oldest first."""
        found = (NAME.fullmatch(path.name) for path in self.folder.glob("round-*.safetensors"))
        return sorted(int(match.group(1)) for match in found if match)

    def prune(self, keep: set[int]) -> None:
        """Remove the files of all other rounds, and whatever an interrupted write left behind."""
        kept = {
            path.name
            for number in keep
            for path in (self.path(number), self.state_path(number), self.average_path(number))
        }
        for path in self.folder.glob("round-*.safetensors"):
            if path.name not in kept and (NAME.fullmatch(path.name) or BESIDE.fullmatch(path.name)):
                path.unlink(missing_ok=True)
        for part in self.folder.glob(".round-*.part"):
            part.unlink(missing_ok=True)
