"""The site's part in the consortium's intensity scale: sums that it sends, and its cases laid over it."""

import logging
from functools import partial

from pydantic import JsonValue, TypeAdapter

from fedglioma.case import CHANNELS, Modality
from fedglioma.config.run import RunConfig
from fedglioma.counts import estimate
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.standardize import on_scale
from fedglioma.errors import ScaleError
from fedglioma.landmarks import noisy_sums, private_sums, published_sums
from fedglioma.noise import DELTA
from fedglioma.privacy.noised_counts import one_scan_each
from fedglioma.scale import FEWEST_CASES, MOST_DISTANCE, LandmarkSums, Scale, distance, landmark_sums
from fedglioma_client.known_scale import remember_scale, require_one_scale
from fedglioma_client.published import told_counts
from fedglioma_client.site import Site
from fedglioma_client.spend import gaussian, told_once, was_told

logger = logging.getLogger(__name__)

_SUMS = TypeAdapter(dict[Modality, LandmarkSums])


def landmarks_of(
    site: Site, settings: RunConfig, run: str
) -> tuple[dict[Modality, LandmarkSums], float | None]:
    """Return what the site says of its cases' landmarks, and the epsilon of the noise on it, if there is any.

    There is where the site's settings ask for it, and in every private run; what it costs is in the ledger
    then, and what a run was told stands for that run. Nothing is said where the run leaves each case on a
    scale of its own.

    Raises
    ------
    IdentityError, ConfigError
        Noise is asked for, and the site's secret cannot be used.
    BudgetExhausted
        The noised landmarks would cost a patient more than the site allows.
    PrivacyError
        The ledger is not as it was written.
    """
    if not settings.common_scale:
        return {}, None
    limit, epsilon = site.config.small_cell_limit, _epsilon(site, settings)
    if epsilon is None:
        return published_sums([case.landmarks() for case in site.cases], limit), None
    # The noise hides one image set: of a patient with several, one is told of.
    chosen = {id(case) for case in one_scan_each(prepared.case for prepared in site.cases)}
    cases = [prepared.landmarks() for prepared in site.cases if id(prepared.case) in chosen]
    private, make = settings.privacy == "site", partial(noisy_sums, cases, limit, epsilon)
    enough = bool(published_sums(cases, limit))
    if private:
        numbers = _having(site, settings, run)
        make = partial(private_sums, cases, numbers, epsilon)
        enough = any(round(number) >= FEWEST_CASES for number in numbers.values())
    terms: dict[str, JsonValue] = {"private": private, "limit": limit, "epsilon": epsilon}
    mechanism = gaussian(epsilon, DELTA)
    if not enough and not was_told(site, run, "landmarks", terms):
        return {}, None
    told = told_once(site, run, "landmarks", terms, mechanism, lambda key: _SUMS.dump_json(make(key)))
    found = _SUMS.validate_json(told)
    logger.info(
        "intensity landmarks of %d sequences are told with noise: epsilon %g, delta %g a patient",
        len(found),
        epsilon,
        DELTA,
    )
    return found, epsilon


def _having(site: Site, settings: RunConfig, run: str) -> dict[Modality, float]:
    """Return how many cases have each modality, of the noised counts; no more than all of them."""
    counts = told_counts(site, settings, run)

    def having(modality: Modality) -> float:
        subsets = counts.modalities.items()
        cells = [cell for subset, cell in subsets if modality.value in subset.split("+")]
        return sum(estimate(cell, counts.limit) for cell in cells)

    return {modality: min(having(modality), counts.cases) for modality in CHANNELS}


def _epsilon(site: Site, settings: RunConfig) -> float | None:
    """Return the site's own epsilon, or the run's; the smaller where both have one."""
    asked = (site.config.landmark_epsilon, settings.counts_epsilon if settings.privacy == "site" else None)
    return min((epsilon for epsilon in asked if epsilon is not None), default=None)


def cases_on_scale(
    site: Site, scale: Scale | None, run: str, *, silent: bool = False
) -> tuple[PreparedCase, ...]:
    """Return the site's cases on the consortium's scale, or as they are where there is none.

    A site that lies off refuses, unless its landmarks are told with noise or under masks: whether it refuses,
    asked with one scale after another, would tell them exactly. It then says so in its own log, and its cases
    are laid on the scale all the same.

    Parameters
    ----------
    run : str
        What the coordinator calls the run; it has one scale.
    silent : bool
        Whether the run is private or its statistics masked; so it is anyway with the site's own noise.

    Raises
    ------
    ScaleError
        The site's mean landmarks lie too far from the scale: prepared otherwise, or not MRI of heads.
    ProtocolError
        The run had another scale before.
    """
    if scale is not None:
        cases = [case.landmarks() for case in site.cases]
        far, modality = distance({m: told.mean for m, told in landmark_sums(cases).items()}, scale)
        if far > MOST_DISTANCE:
            logger.warning("intensities: the mean landmarks of %s lie %.0f points off", modality, far)
        if not silent and site.config.landmark_epsilon is None:
            require_one_scale(site.config, run, scale)
            if far > MOST_DISTANCE:
                public = modality in published_sums(cases, site.config.small_cell_limit)
                raise ScaleError(_too_far(far, modality, public=public))
        remember_scale(site.config, scale)
    return on_scale(site.cases, scale, workers=site.config.workers)


def _too_far(far: float, modality: Modality | None, *, public: bool) -> str:
    """Return the refusal's words, which travel: no figure of a modality of which the site has few cases."""
    lie = f"of {modality} lie {far:.0f} points" if public else "lie too far"
    return (
        f"intensities: the mean landmarks {lie} from the consortium's, {MOST_DISTANCE:.0f} of 100 are "
        "allowed; look at its images in the quality report"
    )
