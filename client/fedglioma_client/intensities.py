"""The site's part in the consortium's intensity scale: sums that it sends, and its cases laid over it."""

from fedglioma.case import Modality
from fedglioma.config.run import RunConfig
from fedglioma.data.prepared import PreparedCase
from fedglioma.data.standardize import on_scale
from fedglioma.errors import ScaleError
from fedglioma.scale import MOST_DISTANCE, LandmarkSums, Scale, distance, landmark_sums
from fedglioma_client.site import Site


def landmarks_of(site: Site, settings: RunConfig) -> dict[Modality, LandmarkSums]:
    """Return the sums of the cases' landmarks; none where the run leaves each case on a scale of its own."""
    return _sums(site) if settings.common_scale else {}


def cases_on_scale(site: Site, scale: Scale | None) -> tuple[PreparedCase, ...]:
    """Return the site's cases on the consortium's scale, or as they are where there is none.

    Raises
    ------
    ScaleError
        The site's mean landmarks lie too far from the scale: prepared otherwise, or not MRI of heads.
    """
    if scale is not None:
        far, modality = distance({m: sums.mean for m, sums in _sums(site).items()}, scale)
        if far > MOST_DISTANCE:
            raise ScaleError(
                f"intensities: the mean landmarks of {modality} lie {far:.0f} points from the consortium's, "
                f"{MOST_DISTANCE:.0f} of 100 are allowed; look at its images in the quality report"
            )
    return on_scale(site.cases, scale, workers=site.config.workers)


def _sums(site: Site) -> dict[Modality, LandmarkSums]:
    return landmark_sums([case.landmarks() for case in site.cases])
