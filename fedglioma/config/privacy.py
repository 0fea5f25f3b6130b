"""PrivacyTerms: what a run asks for in the name of privacy, and what a site allows at most."""

from typing import Literal

from pydantic import Field

from fedglioma.case import Frozen

Clipping = Literal["flat", "per_layer"]
AccountantName = Literal["prv", "rdp"]
PrivacyName = Literal["none", "site", "central"]

LARGEST_DELTA = 0.01
"""Above it a patient in a hundred may lose all privacy."""
MOST_EPSILON = 100.0
"""Above it noise would be said to protect what it does not."""


class PrivacyTerms(Frozen):
    """Terms of differentially private training at a site (DP-SGD; Abadi et al. 2016, algorithm 1).

    The unit is a patient, with all scans; two data sets are neighbours when one has a patient more. In each
    step every patient takes part with probability ``sampling_rate``; the gradient of each is clipped to the
    Euclidean length ``clip_norm``, and noise of standard deviation ``noise_multiplier * clip_norm`` is added
    to each number of their sum.
    """

    noise_multiplier: float = Field(gt=0, le=1000)
    clip_norm: float = Field(gt=0, le=1000)
    clipping: Clipping = "flat"
    sampling_rate: float = Field(gt=0, le=1)
    delta: float = Field(gt=0, le=LARGEST_DELTA)
    accountant: AccountantName = "prv"
    steps_per_round: int = Field(ge=1, le=100_000)
    rounds: int = Field(ge=1)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_round * self.rounds
