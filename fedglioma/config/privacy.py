"""PrivacyTerms: the noise that a run asks for, and which of a run's settings hold together with it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fedglioma.case import Frozen

if TYPE_CHECKING:
    from fedglioma.config.run import RunConfig

Clipping = Literal["flat", "per_layer"]
AccountantName = Literal["prv", "rdp"]
PrivacyName = Literal["none", "site", "central"]

LARGEST_DELTA = 0.01
"""Above it a patient in a hundred may lose all privacy."""
ROBUST = ("median", "trimmed_mean", "multikrum")
"""Strategies that compare single updates, which nobody sees under secure aggregation."""
FEWEST_MASKED = 3
"""Sites in a masked sum: of two, each knows the other's part."""


class PrivacyTerms(Frozen):
    """Terms of differentially private training at a site (DP-SGD; Abadi et al. 2016, algorithm 1).

    The unit is a patient, with all scans; two data sets are neighbours when one has a patient more. In each
    step every patient takes part with probability ``sampling_rate``; the gradient of each is clipped to the
    Euclidean length ``clip_norm``, and noise of standard deviation ``noise_multiplier * clip_norm`` is added
    to each number of their sum. Counts and intensity landmarks, which are told before, have noise of
    ``counts_epsilon`` each.
    """

    noise_multiplier: float = Field(gt=0, le=1000)
    clip_norm: float = Field(gt=0, le=1000)
    clipping: Clipping = "flat"
    sampling_rate: float = Field(gt=0, le=1)
    delta: float = Field(gt=0, le=LARGEST_DELTA)
    accountant: AccountantName = "prv"
    steps_per_round: int = Field(ge=1, le=100_000)
    rounds: int = Field(ge=1)
    counts_epsilon: float = Field(default=0.5, gt=0, le=100)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_round * self.rounds


def require_whole(settings: "RunConfig") -> None:
    """Raise ``ValueError`` for the first setting that does not go with the run's privacy, and say why."""
    if settings.privacy != "none" and not (settings.noise_multiplier or settings.target_epsilon):
        raise ValueError(f"privacy: {settings.privacy}: give target_epsilon, or noise_multiplier itself")
    for name, why in _conflicts(settings):
        raise ValueError(f"{name}: {why}")


def _conflicts(settings: "RunConfig") -> Iterator[tuple[str, str]]:
    if settings.privacy == "central":
        yield from ((name, f"{why}: not with privacy central") for name, why in _against_central(settings))
    if settings.privacy == "site":
        yield from ((name, f"{why}: not with privacy site") for name, why in _against_site(settings))
    if settings.secure_aggregation:
        yield from ((name, f"{why}: not with secure_aggregation") for name, why in _against_masks(settings))
    elif settings.payload == "masked":
        yield "payload", "masked: only with secure_aggregation"
    if settings.secure_statistics and not settings.secure_aggregation and settings.privacy != "central":
        yield (
            "secure_statistics",
            "only with secure_aggregation: the server would not know how to weigh single updates",
        )
    if settings.secure_statistics and settings.find_duplicates:
        yield "find_duplicates", "tells the server of single sites' patients: not with secure_statistics"


def _against_central(settings: "RunConfig") -> Iterator[tuple[str, str]]:
    if settings.strategy != "fedavg":
        yield "strategy", f"the noise is that of a plain mean; choose fedavg, as {settings.strategy} is more"
    if settings.norm_limit > 0:
        yield "norm_limit", "one site's step must not decide whether another's counts; set it to 0"
    if settings.keep_updates:
        yield "keep_updates", "the steps as they came would stay on disk"
    if settings.quorum < FEWEST_MASKED:
        yield "quorum", f"a mean of less than {FEWEST_MASKED} sites hides none of them"


def _against_site(settings: "RunConfig") -> Iterator[tuple[str, str]]:
    if settings.model == "swinunetr":
        yield (
            "model",
            "swinunetr gives no gradients by patient: its attention owns parameters beside its layers",
        )
    yield from _against_layers(settings)
    if settings.weighting == "uncertainty":
        yield "weighting", "learned loss weights follow the labels"
    if settings.counts == "local":
        yield "counts", "a site's exact counts would shape its loss"
    if settings.compile:
        yield "compile", "a compiled network gives no gradients by patient"
    if settings.checkpointing:
        yield "checkpointing", "activations that are made again give no gradients by patient"
    if settings.accumulate > 1:
        yield "accumulate", "sampling_rate decides what a step consists of"
    if settings.precision in ("bfloat16", "float16"):
        yield "precision", "clipping needs float32"
    if settings.secure_statistics:
        yield "secure_statistics", "each site's counts are noised by themselves"


def _against_layers(settings: "RunConfig") -> Iterator[tuple[str, str]]:
    if settings.batch_norm:
        name = "norm" if settings.norm == "batch" else "preset"
        yield name, f"{getattr(settings, name)} normalises over the batch"
    elif settings.model == "mdpnet" and settings.preset != "recommended":
        yield "preset", f"{settings.preset} drops weights of its attention by chance"


def _against_masks(settings: "RunConfig") -> Iterator[tuple[str, str]]:
    if settings.strategy in ROBUST:
        yield "strategy", f"{settings.strategy} compares single updates, which nobody sees"
    if settings.payload != "masked":
        yield "payload", f"{settings.payload} is not masked; leave payload out"
    if settings.norm_limit > 0:
        yield "norm_limit", "nobody sees the length of a single update; set it to 0"
    if settings.keep_updates:
        yield "keep_updates", "there are no single updates to keep"
    if settings.privacy == "central":
        yield "privacy", "central clips single updates, which nobody sees"
    if settings.quorum < FEWEST_MASKED:
        yield "quorum", f"a masked sum needs {FEWEST_MASKED} sites"
