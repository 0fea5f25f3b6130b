"""What a private run spends: its noise where a target is given, and each site's epsilon after its rounds.

The coordinator's own reckoning, of what it asked for. What a hospital counts is in its ledger, over all runs.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil, floor, log10
from typing import Any

from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError
from fedglioma.noise import DELTA
from fedglioma.privacy.accounting import Mechanism, epsilon_of, gaussian_equivalent
from fedglioma_server.records import RoundRecord, SiteRound

FINEST = 1e-4
MOST_NOISE = 1000.0


@lru_cache(maxsize=64)
def with_noise(settings: RunConfig) -> RunConfig:
    """Return settings whose ``noise_multiplier`` is set: the least, to four digits, that keeps the target.

    Unchanged where it is given, and without privacy.

    Raises
    ------
    ConfigError
        No noise keeps the target, or the noise that was given does not.
    """
    if settings.privacy == "none":
        return settings
    target, given = settings.target_epsilon, settings.noise_multiplier
    if given and target and (spent := epsilon_after(settings, settings.rounds)) > target:
        raise ConfigError(
            f"noise_multiplier {given:g}: spends epsilon {spent:.3g} over the run, target_epsilon is "
            f"{target:g}; leave one of the two out"
        )
    if given:
        return settings

    def enough(noise: float) -> bool:
        trial = settings.model_copy(update={"noise_multiplier": noise})
        return epsilon_after(trial, settings.rounds) <= target

    if not enough(MOST_NOISE):
        lower = "counts_epsilon, rounds or sampling_rate" if settings.privacy == "site" else "rounds"
        raise ConfigError(f"target_epsilon {target:g}: no noise keeps it with these settings; lower {lower}")
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
    while high - low > FINEST * high:
        middle = (low + high) / 2
        low, high = (low, middle) if middle > FINEST and enough(middle) else (middle, high)
    return settings.model_copy(update={"noise_multiplier": _rounded_up(high)})


def _rounded_up(noise: float) -> float:
    """Return a number with four digits that is not below another."""
    step = 10.0 ** (floor(log10(noise)) - 3)
    return round(ceil(noise / step) * step, 12)


def mechanisms(settings: RunConfig, rounds: int) -> list[Mechanism]:
    """Return what so many rounds of a run do to a unit's privacy; empty without privacy.

    With privacy site they are the steps of training and the noise on counts and intensity landmarks, with
    central a sum a round: no amplification, as every site is asked.
    """
    noise = settings.noise_multiplier
    if settings.privacy == "central" and rounds:
        return [Mechanism(noise_multiplier=noise, sampling_rate=1.0, steps=rounds)]
    if settings.privacy != "site":
        return []
    counts = gaussian_equivalent(settings.counts_epsilon, settings.delta)
    told = [Mechanism(noise_multiplier=counts, sampling_rate=1.0, steps=1)]
    if settings.common_scale:
        landmarks = gaussian_equivalent(settings.counts_epsilon, DELTA)
        told.append(Mechanism(noise_multiplier=landmarks, sampling_rate=1.0, steps=1))
    if not rounds:
        return told
    steps = rounds * settings.steps_per_round
    return [
        *told,
        Mechanism(noise_multiplier=noise, sampling_rate=settings.sampling_rate, steps=steps),
    ]


def epsilon_after(settings: RunConfig, rounds: int) -> float:
    """Return epsilon, at the run's delta, of a unit whose site took part in so many rounds."""
    return epsilon_of(mechanisms(settings, rounds), settings.delta, settings.accountant)


def spent_by_site(settings: RunConfig, rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Return each site's epsilon after the rounds on record; empty without privacy.

    With central privacy a round's sum is one release, whoever was in it: all sites spend alike.
    """
    return {} if settings.privacy == "none" else _spent(settings, [line.sites for line in rounds])


def _spent(settings: RunConfig, rounds: Sequence[Mapping[str, SiteRound]]) -> dict[str, float]:
    heard: dict[str, int] = {}
    for sites in rounds:
        for site, entry in sites.items():
            heard[site] = heard.get(site, 0) + _may_have_sent(entry)
    if settings.privacy == "central":
        heard = dict.fromkeys(heard, sum(map(bool, rounds)))
    return {site: epsilon_after(settings, number) for site, number in sorted(heard.items())}


def _may_have_sent(entry: SiteRound) -> bool:
    """Whether a site's update may have left it: used or not, in time or too late."""
    late = entry.status == "no_reply" and entry.code == "no_reply"
    return late or entry.status in ("ok", "error") or entry.code in ("refused",)


def with_epsilon(
    settings: RunConfig, before: Sequence[RoundRecord], sites: Mapping[str, SiteRound]
) -> dict[str, SiteRound]:
    """Return the sites of the round after ``before`` with what each has spent by now.

    With central privacy without what would tell of single hospitals' steps.
    """
    if settings.privacy == "none" or not sites:
        return dict(sites)
    spent = _spent(settings, [*(line.sites for line in before), sites])
    # What the centre hides of a hospital is not told beside the model either.
    hidden: dict[str, Any] = {}
    if settings.privacy == "central":
        hidden = {"update_norm": None, "loss": None, "loss_by_task": {}}
    return {
        site: entry.model_copy(update={"epsilon": spent[site], **hidden}) for site, entry in sites.items()
    }
