"""A federation on one machine, written down: who holds which prepared cases.

Both simulation engines start the two apps with nothing but the path of this file, as a real node starts
with nothing but its site's settings. It names patients and paths, so it lies in the run's ``work``
folder, readable by its owner only, and no report or message draws on those fields.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from fedglioma.case import Frozen
from fedglioma.config.run import RunConfig
from fedglioma.config.site import SiteConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.errors import ConfigError

PLAN_KEY = "simulation"
"""Key of Flower's run configuration that holds the plan's path; real sites refuse it."""
PLAN_VARIABLE = "FEDGLIOMA_SIMULATION"
"""The same for Ray's worker processes, to which Flower brings no run configuration."""


def plan_path(run_config: Mapping[str, object]) -> Path | None:
    """Return the path of the plan that this node or server belongs to; None outside a simulation."""
    named = run_config.get(PLAN_KEY) or os.environ.get(PLAN_VARIABLE)
    return None if named is None else Path(str(named))


class SitePlan(Frozen):
    """A simulated hospital: its settings and its training cases, prepared.

    ``described`` is whether the settings are from the hospital's own file, so that its secret and its privacy
    ledger are where that says, and not the run's.
    """

    settings: SiteConfig
    cases: tuple[PreparedCase, ...]
    described: bool = False


class SimulationPlan(Frozen):
    """Everything that a simulated run needs; ``selection`` and ``report`` are the coordinator's.

    ``initial`` is the folder of a released model that the run starts from; ``reported`` whether the run ends
    with its own survival analysis and report, which a study makes of all its runs together.
    """

    run_folder: Path
    settings: RunConfig
    sites: tuple[SitePlan, ...]
    selection: tuple[PreparedCase, ...]
    report: tuple[PreparedCase, ...]
    device: str = "cpu"
    threads: int = 0
    initial: Path | None = None
    reported: bool = True


@lru_cache(maxsize=2)
def _load(path: Path, _modified_ns: int) -> SimulationPlan:
    try:
        return SimulationPlan.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        raise ConfigError(f"{path}: not a simulation's plan of this version; simulate again") from None


def load_plan(path: Path) -> SimulationPlan:
    """Return the plan at a path; read once per process and version of the file.

    Raises
    ------
    ConfigError
        There is no such file, or it is not a plan.
    """
    try:
        modified = path.stat().st_mtime_ns
    except OSError:
        raise ConfigError(f"{path}: no such simulation plan") from None
    return _load(path, modified)
