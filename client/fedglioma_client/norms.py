"""A site's own normalisation layers between the rounds of a FedBN run; they never leave the site.

``state/norms/<run and layout>/round-0007.safetensors`` is what training in round 7 left. A round starts
from the newest file of an earlier round, so that a round that is asked for again gives the same bits.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from fedglioma.errors import FedGliomaError, ProtocolError
from fedglioma.tensorfile import read_safetensors, write_safetensors
from fedglioma.weights import local_state

logger = logging.getLogger(__name__)

Norms = Mapping[str, npt.NDArray[Any]]
"""By name in the network."""

_NAME = re.compile(r"round-(\d{4,})\.safetensors")


def norms_of(model: nn.Module) -> Norms:
    """Return a network's normalisation layers as arrays of their own."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in local_state(model).items()}


@dataclass(frozen=True)
class OwnNorms:
    """The normalisation layers of a site in one run.

    Parameters
    ----------
    state : Path
        The site's folder for what it keeps.
    run, layout : str
        Whose they are; words of the coordinator, so they name no folder as they stand.
    """

    state: Path
    run: str
    layout: str

    @property
    def folder(self) -> Path:
        """Where they lie."""
        key = hashlib.sha256(f"{self.run}\x1f{self.layout}".encode()).hexdigest()[:16]
        return self.state / "norms" / key

    def restore(self, model: nn.Module, number: int) -> None:
        """Put in what the site's last round before this one left; nothing where there was none.

        Raises
        ------
        FedGliomaError
            What was kept is damaged or of another network.
        """
        earlier = self._before(number)
        if earlier is None:
            return
        path = self._path(earlier)
        try:
            kept, _ = read_safetensors(path)
        except ProtocolError as error:
            raise FedGliomaError(f"{error}; remove it to start from untrained norms") from None
        own = local_state(model)
        if {n: t.shape for n, t in kept.items()} != {n: tuple(t.shape) for n, t in own.items()}:
            raise FedGliomaError(f"{path}: norms of another network; remove it to start from untrained norms")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.from_numpy(kept[name]))

    def save(self, norms: Norms, number: int) -> None:
        """Keep what a round left, and what it started from; forget the others."""
        earlier = self._before(number)
        write_safetensors(self._path(number), dict(norms), {"round": str(number)})
        for other in self._rounds():
            if other not in (number, earlier):
                self._path(other).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:04d}.safetensors"

    def _rounds(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self.folder.glob("round-*.safetensors"))
        return sorted(int(match.group(1)) for match in found if match)

    def _before(self, number: int) -> int | None:
        return max((other for other in self._rounds() if other < number), default=None)
