"""Strategies by name: the only list of what combines updates."""

from collections.abc import Callable

from fedglioma.config.run import RunConfig
from fedglioma_server.central import CentralPrivacy
from fedglioma_server.combiner import Combiner
from fedglioma_server.robust import Median, MultiKrum, TrimmedMean
from fedglioma_server.server_optimizers import FedAdam, FedAvgM, FedYogi

_COMBINERS: dict[str, Callable[[RunConfig], Combiner]] = {
    "fedavg": Combiner,
    "fedprox": Combiner,
    "fedbn": Combiner,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "multikrum": MultiKrum,
}


def combiner_of(settings: RunConfig) -> Combiner:
    """Return what combines the updates of a run."""
    if settings.privacy == "central":
        return CentralPrivacy(settings)
    return _COMBINERS[settings.strategy](settings)
