"""What the coordinating centre brings to a run, whatever engine carries the messages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fedglioma.config.run import RunConfig
from fedglioma.data.dataset import CaseDataset
from fedglioma.data.plan import SimulationPlan
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.standardize import on_scale
from fedglioma_server.readings import held_out_set
from fedglioma_server.runfolder import RunFolder

CONNECT_S = 120.0


class Audit(Protocol):
    """Told of what happens in a run."""

    def __call__(self, event: str, /, **facts: Any) -> None:
        """Record an event."""
        ...


def _unheard(_event: str, /, **_facts: Any) -> None:
    """Record nothing: a simulation has no audit log."""


@dataclass(frozen=True)
class Coordinator:
    """What the coordinating centre brings to a run: terms, its held-out cases, and where to write.

    ``members`` gives the nodes that may take part and their sites, whether or not they are connected;
    None where the engine's nodes are all there are (simulations). ``expected`` are the sites that the
    start waits for (none named: all). ``audit`` hears what happens, and ``audit_head`` is what its log
    ends with, which travels with every round. ``stop_asked`` is asked after every round. ``usable`` is
    told of each site whose update of the round can be used, while others are still waited for.
    """

    path: Path
    settings: RunConfig
    selection: tuple[PreparedCase, ...] = ()
    report: tuple[PreparedCase, ...] = ()
    device_name: str = "cpu"
    threads: int = 0
    initial: Path | None = None
    reported: bool = True
    sites: int = 0
    join_timeout_s: float = CONNECT_S
    members: Callable[[], Mapping[int, str]] | None = None
    expected: tuple[str, ...] = ()
    audit: Audit = _unheard
    audit_head: Callable[[], str] = lambda: ""
    stop_asked: Callable[[], bool] = lambda: False
    usable: Callable[[str], None] = lambda _site: None

    @classmethod
    def of_plan(cls, plan: SimulationPlan) -> "Coordinator":
        """Return the coordinator of a simulation."""
        return cls(
            path=plan.run_folder,
            settings=plan.settings,
            selection=plan.selection,
            report=plan.report,
            device_name=plan.device,
            threads=plan.threads,
            initial=plan.initial,
            reported=plan.reported,
            sites=len(plan.sites),
            join_timeout_s=min(CONNECT_S, plan.settings.round_timeout_s),
        )

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.path)

    @property
    def device(self) -> torch.device:
        """Where the held-out cases are evaluated."""
        return torch.device(self.device_name)

    def on_scale(self, cases: tuple[PreparedCase, ...]) -> tuple[PreparedCase, ...]:
        """Return held-out cases on the run's intensity scale."""
        return on_scale(cases, self.folder.read().scale, workers=max(self.threads, 1))

    def dataset(self, cases: tuple[PreparedCase, ...]) -> CaseDataset:
        """Return held-out cases for evaluation: on the run's scale, nothing random."""
        return held_out_set(self.on_scale(cases), self.settings)
