"""The consortium's intensity scale at the start of a run: who decides it, and who lies too far off to.

A site that prepared its images otherwise would drag the scale away from everybody. Where three or more
sites say something of a modality, the median of their means shows who is off; between two, nobody can tell.
"""

from collections.abc import Mapping
from itertools import combinations
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from fedglioma.case import CHANNELS, Modality
from fedglioma.landmarks import Sums, fit_with_noise, in_points, noise_of_means
from fedglioma.pooled import Pooled
from fedglioma.scale import MOST_DISTANCE, Inner, LandmarkSums, Scale
from fedglioma_server.records import ScaleDoubt

ENOUGH_FOR_A_MEDIAN = 3
MOST_NOISE = 5.0
"""Standard deviation, in points of 100, above which a site's own noise hides where it lies."""

Said = Mapping[str, Sums]
"""By site: the sums of each modality of which it has enough cases."""


class Agreed(NamedTuple):
    """A scale, and what was doubtful about it."""

    scale: Scale
    doubts: tuple[ScaleDoubt, ...]


def agree_on_scale(said: Said, epsilons: Mapping[str, float | None] | None = None) -> Agreed:
    """Return the scale of the sites that lie together, and who does not.

    A site whose mean landmarks lie more than ``MOST_DISTANCE`` from the sites' coordinate-wise median in
    any modality is left out of all, as long as more than half of the sites that speak of the modality stay.
    Where fewer would, or only two speak, all are used and the two farthest apart are named. A site whose
    own noise is large neither votes nor is judged: what it says cannot leave its box.

    Parameters
    ----------
    said : mapping
        What each site said.
    epsilons : mapping, optional
        Of the noise that a site added; None or not named: none.
    """
    noise = {site: noise_of_means(told, (epsilons or {}).get(site)) for site, told in sorted(said.items())}
    heard = {site: _clear(said[site], noise[site]) for site in noise}
    staying, left_out = dict(heard), []
    while far := _farthest(staying, heard):
        left_out.append(far)
        del staying[far.sites[0]]
    apart: dict[tuple[str, ...], ScaleDoubt] = {}
    for modality in CHANNELS:
        doubt = _apart(modality, _means(staying, modality))
        if doubt is not None:
            pair = tuple(doubt.sites)
            apart[pair] = max(apart.get(pair, doubt), doubt, key=lambda one: one.distance)
    return Agreed(
        fit_with_noise([said[site] for site in staying], [noise[site] for site in staying]),
        (*left_out, *apart.values()),
    )


def agree_on_sum(told: Pooled) -> Agreed:
    """Return the scale of a masked sum: of all sites together, with nobody to doubt.

    A site that lies far off drags it along unseen; it finds so in its own log, as may others in theirs.
    """
    scale = fit_with_noise([told.landmarks], [dict.fromkeys(told.landmarks, 0.0)])
    return Agreed(scale.model_copy(update={"sites": told.speaking}), ())


def words_of(doubt: ScaleDoubt) -> str:
    """Return a doubt as a sentence without its sites, for the log and the report."""
    of = f"the mean landmarks of {doubt.modality} lie {doubt.distance:.0f} points"
    allowed = f"{MOST_DISTANCE:.0f} of 100 are allowed"
    if doubt.kind == "left_out":
        return (
            f"left out of the intensity scale: {of} from the median of the hospitals, {allowed}; "
            "look at its images in its quality report"
        )
    return (
        f"{of} apart, {allowed}, and there are too few others to tell who is wrong: both are used; "
        "look at the images of both in their quality reports"
    )


def _farthest(staying: Said, said: Said) -> ScaleDoubt | None:
    """Return the site that lies farthest off where most of those who spoke agree, or None."""
    found = []
    for modality in CHANNELS:
        means = _means(staying, modality)
        far = _far(means)
        if far and 2 * (len(means) - len(far)) > len(_means(said, modality)):
            found += [_doubt("left_out", [site], modality, off) for site, off in far.items()]
    return max(found, key=lambda doubt: doubt.distance, default=None)


def _apart(modality: Modality, means: Mapping[str, Inner]) -> ScaleDoubt | None:
    """Return the two sites that lie farthest apart where no median can tell who is wrong, or None."""
    if len(means) >= ENOUGH_FOR_A_MEDIAN and not _far(means):
        return None
    pairs = [
        (float(np.abs(np.subtract(means[one], means[other])).max()), [one, other])
        for one, other in combinations(sorted(means), 2)
    ]
    off, sites = max(pairs, key=itemgetter(0), default=(0.0, []))
    return _doubt("apart", sites, modality, off) if off > MOST_DISTANCE else None


def _far(means: Mapping[str, Inner]) -> dict[str, float]:
    """Return the sites that lie too far from the median of all, with their distances in points."""
    if len(means) < ENOUGH_FOR_A_MEDIAN:
        return {}
    middle = np.median(list(means.values()), axis=0)  # (3,)
    off = {site: float(np.abs(np.subtract(mean, middle)).max()) for site, mean in means.items()}
    return {site: points for site, points in off.items() if points > MOST_DISTANCE}


def _clear(told: Mapping[Modality, LandmarkSums], noise: Mapping[Modality, float]) -> Sums:
    """Return what a site says of modalities in which its noise does not hide where it lies."""
    return {m: sums for m, sums in told.items() if max(in_points(m, noise[m])) <= MOST_NOISE}


def _means(said: Said, modality: Modality) -> dict[str, Inner]:
    return {site: sums[modality].mean for site, sums in said.items() if modality in sums}


def _doubt(kind: str, sites: list[str], modality: Modality, distance: float) -> ScaleDoubt:
    return ScaleDoubt.model_validate(
        {"kind": kind, "sites": sites, "modality": modality, "distance": round(distance, 1)}
    )
