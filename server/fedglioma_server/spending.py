"""What a private run spends: its noise where a target is given, and each site's epsilon after its rounds.

The coordinator's own reckoning, of what it asked for. What a hospital counts is in its ledger, over all runs.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil, floor, inf, log10, sqrt
from typing import Any, Literal

from fedglioma.config.run import RunConfig
from fedglioma.errors import ConfigError, PrivacyError
from fedglioma.noise import DELTA
from fedglioma.privacy.accounting import Mechanism, Spent, epsilon_of, gaussian_equivalent, noise_for
from fedglioma_server.records import RoundRecord, RunRecord, SiteRound

NOTHING_SPENT = frozenset({"policy", "budget", "idle", "not_connected", "not_masked"})
"""Why a site was left out before its first step."""


@lru_cache(maxsize=64)
def with_noise(settings: RunConfig, *, landmarks: bool = True) -> RunConfig:
    """Return settings whose ``noise_multiplier`` is set: the least, to four digits, that keeps the target.

    Unchanged where it is given, and without privacy. ``landmarks`` as for ``mechanisms``.

    Raises
    ------
    ConfigError
        No noise keeps the target, or the noise that was given does not.
    """
    if settings.privacy == "none":
        return settings
    target, given = settings.target_epsilon, settings.noise_multiplier
    spent = epsilon_after(settings, settings.rounds, landmarks=landmarks) if given and target else 0.0
    if spent > target:
        raise ConfigError(
            f"noise_multiplier {given:g}: spends epsilon {spent:.3g} over the run, target_epsilon is "
            f"{target:g}; leave one of the two out"
        )
    if given:
        return settings
    rate, steps = _sums(settings, settings.rounds)
    try:
        besides = _told(settings, landmarks)
        noise = noise_for(target, settings.delta, rate, steps, settings.accountant, besides=besides)
    except PrivacyError as error:
        lower = "counts_epsilon, rounds or sampling_rate" if settings.privacy == "site" else "rounds"
        raise ConfigError(f"{error} (here: {lower})") from None
    return settings.model_copy(update={"noise_multiplier": _rounded_up(noise)})


def _rounded_up(noise: float) -> float:
    """Return a number with four digits that is not below another."""
    step = 10.0 ** (floor(log10(noise)) - 3)
    return round(ceil(round(noise / step, 6)) * step, 12)


def _sums(settings: RunConfig, rounds: int) -> tuple[float, int]:
    """Return with what chance a unit is in a sum of training, and how many sums so many rounds make.

    With central privacy a round is one sum, and there is no amplification, as every site is asked.
    """
    if settings.privacy == "central":
        return 1.0, rounds
    return settings.sampling_rate, rounds * settings.steps_per_round


def _told(settings: RunConfig, landmarks: bool) -> list[Mechanism]:
    """Return the noise on counts and intensity landmarks, which are told before the first round."""
    if settings.privacy != "site":
        return []
    deltas = [settings.delta, *([DELTA] if settings.common_scale and landmarks else [])]
    noises = [gaussian_equivalent(settings.counts_epsilon, delta) for delta in deltas]
    return [Mechanism(noise_multiplier=noise, sampling_rate=1.0, steps=1) for noise in noises]


def mechanisms(settings: RunConfig, rounds: int, *, landmarks: bool = True) -> list[Mechanism]:
    """Return what so many rounds of a run do to a unit's privacy; empty without privacy.

    ``landmarks`` says whether a run with a common intensity scale asks the sites for it: not where it goes on
    on the scale of the model that it starts from.
    """
    if settings.privacy == "none":
        return []
    rate, steps = _sums(settings, rounds)
    if not steps:
        return _told(settings, landmarks)
    trained = Mechanism(noise_multiplier=settings.noise_multiplier, sampling_rate=rate, steps=steps)
    return [*_told(settings, landmarks), trained]


def epsilon_after(settings: RunConfig, rounds: int, *, landmarks: bool = True) -> float:
    """Return epsilon, at the run's delta, of a unit whose site took part in so many rounds.

    ``landmarks`` as for ``mechanisms``.
    """
    told = mechanisms(settings, rounds, landmarks=landmarks)
    return epsilon_of(told, settings.delta, settings.accountant)


def spent_of(record: RunRecord, rounds: Sequence[RoundRecord]) -> Spent | None:
    """Return what the rounds on record did to those who lost most, with what the run's first weights had.

    None where the run is not private, or began with a model that is not, or that hides somebody else: nothing
    can be promised of its weights then.
    """
    settings = record.settings
    if settings.privacy == "none":
        return None
    unit: Literal["patient", "site"] = "patient" if settings.privacy == "site" else "site"
    before: tuple[Mechanism, ...] = ()
    if record.initial_digest is not None:
        if record.initial_spent is None or record.initial_spent.unit != unit:
            return None
        before = record.initial_spent.mechanisms
    most = max(_heard(settings, [line.sites for line in rounds]).values(), default=0)
    own = mechanisms(settings, most, landmarks=not record.scale_from_model)
    return Spent(unit=unit, mechanisms=(*before, *own))


def spent_by_site(record: RunRecord, rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """Return each site's epsilon after the rounds on record, that of the first weights in it.

    Empty where nothing can be promised (``spent_of``). With central privacy a round's sum is one release,
    whoever was in it: all sites spend alike.
    """
    if spent_of(record, rounds) is None:
        return {}
    heard = _heard(record.settings, [line.sites for line in rounds])
    return {site: _epsilon_after(record, number) for site, number in heard.items()}


def _epsilon_after(record: RunRecord, rounds: int) -> float:
    """Return what so many rounds of a run spent, after what its first weights had."""
    settings = record.settings
    before = () if record.initial_spent is None else record.initial_spent.mechanisms
    own = mechanisms(settings, rounds, landmarks=not record.scale_from_model)
    return epsilon_of((*before, *own), settings.delta, settings.accountant)


def _heard(settings: RunConfig, rounds: Sequence[Mapping[str, SiteRound]]) -> dict[str, int]:
    """Return how many rounds each site's patients may have lost by, or with central privacy each site."""
    heard: dict[str, int] = {}
    for sites in rounds:
        for site, entry in sites.items():
            heard[site] = heard.get(site, 0) + _may_have_spent(entry)
    if settings.privacy == "central":
        heard = dict.fromkeys(heard, sum(map(bool, rounds)))
    return dict(sorted(heard.items()))


def noise_over_gradient(record: RunRecord) -> float | None:
    """Return how many times longer the noise of a step is than its gradient can be, in the mean of the sites.

    The noise is as long as its standard deviation times the root of the network's parameters; a gradient of
    patients is no longer than ``clip_norm``, and with central privacy a site's step is not. None without
    privacy and before there are sites, infinite where their noised counts add up to no case.
    """
    settings, cases = record.settings, sum(data.cases for data in record.sites.values())
    if settings.privacy == "none" or not record.sites:
        return None
    length, sites = settings.noise_multiplier * sqrt(record.parameters), len(record.sites)
    if settings.privacy == "central":
        return length / sites
    # Sites count by their cases: each brings noise / (rate x cases), and independent noise adds in squares.
    return length * sqrt(sites) / (settings.sampling_rate * cases) if cases else inf


def _may_have_spent(entry: SiteRound) -> bool:
    """Whether a site's patients may have lost by a round: one that failed is paid for too."""
    return entry.status == "ok" or entry.code not in NOTHING_SPENT


def with_epsilon(
    record: RunRecord, before: Sequence[RoundRecord], sites: Mapping[str, SiteRound]
) -> dict[str, SiteRound]:
    """Return the sites of the round after ``before`` with what each has spent by now, as ``spent_by_site``.

    With central privacy without what would tell of single hospitals' steps.
    """
    settings = record.settings
    if settings.privacy == "none" or not sites:
        return dict(sites)
    heard = _heard(settings, [*(line.sites for line in before), sites])
    # What the centre hides of a hospital is not told beside the model either.
    hidden: dict[str, Any] = {}
    if settings.privacy == "central":
        hidden = {"update_norm": None, "loss": None, "loss_by_task": {}}
    known = spent_of(record, before) is not None
    return {
        site: entry.model_copy(
            update={"epsilon": _epsilon_after(record, heard[site]) if known else None, **hidden}
        )
        for site, entry in sites.items()
    }
