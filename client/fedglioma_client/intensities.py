"""The site's part in the consortium's intensity scale: sums that it sends, and its cases laid over it."""

import json
import logging
from collections.abc import Mapping

from fedglioma.case import Modality
from fedglioma.config.run import RunConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.standardize import on_scale
from fedglioma.errors import ScaleError
from fedglioma.landmarks import noisy_sums, published_sums
from fedglioma.noise import DELTA
from fedglioma.privacy.noised_counts import one_scan_each
from fedglioma.scale import FEWEST_CASES, MOST_DISTANCE, LandmarkSums, Scale, distance, landmark_sums
from fedglioma_client.intake import secret_of
from fedglioma_client.known_scale import remember_scale
from fedglioma_client.published import published_counts
from fedglioma_client.site import Site
from fedglioma_client.spend import gaussian, spend_once

logger = logging.getLogger(__name__)


def landmarks_of(site: Site, settings: RunConfig) -> tuple[dict[Modality, LandmarkSums], float | None]:
    """Return what the site says of its cases' landmarks, and the epsilon of the noise on it, if there is any.

    There is where the site's settings ask for it, and in every private run; what it costs is in the ledger
    then. Nothing is said where the run leaves each case on a scale of its own.

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
    found = noisy_sums(cases, limit, epsilon, secret_of(site.config))
    if settings.privacy == "site":
        found = _of_as_many(found, published_counts(site, settings).cases)
    if not found:
        return {}, None
    told = {modality.value: sums.model_dump() for modality, sums in sorted(found.items())}
    spend_once(site, "landmarks", json.dumps(told).encode(), gaussian(epsilon, DELTA))
    logger.info(
        "intensity landmarks of %d sequences are told with noise: epsilon %g, delta %g a patient",
        len(found),
        epsilon,
        DELTA,
    )
    return found, epsilon


def _of_as_many(found: Mapping[Modality, LandmarkSums], cases: int) -> dict[Modality, LandmarkSums]:
    """Return the same means as those of another number of cases: the noised one, which tells nothing more."""
    if cases < FEWEST_CASES:
        return {}
    told = {}
    for modality, sums in found.items():
        a, b, c = (cases * value for value in sums.mean)
        told[modality] = LandmarkSums(cases=cases, sums=(a, b, c))
    return told


def _epsilon(site: Site, settings: RunConfig) -> float | None:
    """Return the site's own epsilon, or the run's; the smaller where both have one."""
    asked = (site.config.landmark_epsilon, settings.counts_epsilon if settings.privacy == "site" else None)
    return min((epsilon for epsilon in asked if epsilon is not None), default=None)


def cases_on_scale(site: Site, scale: Scale | None, *, private: bool = False) -> tuple[PreparedCase, ...]:
    """Return the site's cases on the consortium's scale, or as they are where there is none.

    Parameters
    ----------
    private : bool
        Whether a refusal must give no figure and no sequence, as what the site told of them is noised.

    Raises
    ------
    ScaleError
        The site's mean landmarks lie too far from the scale: prepared otherwise, or not MRI of heads.
    """
    if scale is not None:
        cases = [case.landmarks() for case in site.cases]
        far, modality = distance({m: told.mean for m, told in landmark_sums(cases).items()}, scale)
        if far > MOST_DISTANCE:
            public = not private and modality in published_sums(cases, site.config.small_cell_limit)
            raise ScaleError(_too_far(site, far, modality, public=public))
        remember_scale(site.config, scale)
    return on_scale(site.cases, scale, workers=site.config.workers)


def _too_far(site: Site, far: float, modality: Modality | None, *, public: bool) -> str:
    """Return the refusal's words, which travel.

    They hold no figure where the site adds noise to its own, and nothing of a modality of which it may not
    speak, as it has too few cases.
    """
    allowed = f"{MOST_DISTANCE:.0f} of 100 are allowed; look at its images in the quality report"
    if not public:
        logger.warning("intensities: the mean landmarks of %s lie %.0f points off", modality, far)
        return f"intensities: the mean landmarks lie too far from the consortium's, {allowed}"
    if site.config.landmark_epsilon is None:
        lie = f"lie {far:.0f} points from the consortium's"
    else:
        lie = "lie too far from the consortium's"
        logger.warning("intensities: the mean landmarks of %s lie %.0f points off", modality, far)
    return f"intensities: the mean landmarks of {modality} {lie}, {allowed}"
