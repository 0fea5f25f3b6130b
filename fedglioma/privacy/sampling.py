"""Which patients take part in a step: each by a toss of its own, unknown to everybody."""

from collections.abc import Iterator

import numpy as np

from fedglioma.errors import PrivacyError
from fedglioma.privacy.secret import SecretRandom


def poisson_batches(units: int, rate: float, steps: int, random: SecretRandom) -> Iterator[list[int]]:
    """Yield for each step the units that take part, in rising order: each with probability ``rate``.

    All tosses are independent, between units and between steps, as the accountants assume (Poisson sampling:
    Y. Zhu and Y.-X. Wang, "Poisson subsampled Renyi differential privacy", ICML 2019). A step without any is
    a step too: an empty list. The probability is met to 2^-64.

    Parameters
    ----------
    units : int
        Patients of the site.
    rate : float
        Above 0, at most 1.
    steps : int
    random : SecretRandom
        Who knows the draws gains nothing from the sampling's own share of the protection.

    Raises
    ------
    PrivacyError
        A number is out of range; raised at once.
    """
    if units < 0 or steps < 0:
        raise PrivacyError(f"sampling of {units} patients in {steps} steps: numbers of at least 0 are needed")
    if not 0 < rate <= 1:
        raise PrivacyError(f"sampling rate {rate}: a number above 0 and at most 1 is needed")
    return _tosses(units, rate, steps, random)


def _tosses(units: int, rate: float, steps: int, random: SecretRandom) -> Iterator[list[int]]:
    # Inclusive: with rate 1 every word is at or below 2^64 - 1.
    highest = np.uint64(max(0, int(rate * 2**64) - 1))
    for _ in range(steps):
        yield np.flatnonzero(random.words(units) <= highest).tolist()
