"""Which settings a run has no use for: those of another network, strategy, privacy or preparation."""

from collections.abc import Iterator

from fedglioma.config.privacy import of_no_use
from fedglioma.config.run import OWN_SWITCHES, RunConfig

_OF_STRATEGIES = {
    "proximal_mu": ("fedprox",),
    "server_lr": ("fedavgm", "fedadam", "fedyogi"),
    "server_momentum": ("fedavgm",),
    "beta_1": ("fedadam", "fedyogi"),
    "beta_2": ("fedadam", "fedyogi"),
    "tau": ("fedadam", "fedyogi"),
    "trim": ("trimmed_mean",),
    "byzantine": ("multikrum",),
}


def without_effect(settings: RunConfig) -> frozenset[str]:
    """Return the names of the settings whose value changes nothing in this run."""
    return frozenset((*of_no_use(settings), *_of_other_networks(settings), *_of_other_ways(settings)))


def _of_other_networks(settings: RunConfig) -> Iterator[str]:
    for model, names in OWN_SWITCHES.items():
        if settings.model != model:
            yield from names
    if not settings.weighs_markers:
        yield from ("weighting", "counts")
    if not settings.genes:
        yield "head_lr"


def _of_other_ways(settings: RunConfig) -> Iterator[str]:
    if settings.own_intensities:
        yield from ("bias_correction", "standardize")
    if not settings.flips:
        yield "one_flip"
    if not settings.secure_aggregation:
        yield from ("secure_range", "secure_wait_s")
    yield from (name for name, those in _OF_STRATEGIES.items() if settings.strategy not in those)
