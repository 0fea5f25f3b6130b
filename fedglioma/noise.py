"""Gaussian noise that hides one patient in a sum.

How much: the analytic Gaussian mechanism (B. Balle, Y.-X. Wang, "Improving the Gaussian mechanism for
differential privacy: analytical calibration and optimal denoising", ICML 2018, theorem 8). Which: numbers
that follow from a key, which is drawn for one answer and forgotten. They must not follow from the patients:
that an answer stayed the same would then say for certain that nobody came or went.
"""

import hashlib
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr, ndtri

from fedglioma.errors import PrivacyError

DELTA: Final = 1e-5
"""Probability with which a patient's privacy may be lost beyond epsilon."""
KEY_BYTES: Final = 32
_FOR_NOISE: Final = b"FEDGLIOMA NOISE 2\n"

FloatArray = npt.NDArray[np.float64]


def delta_of(sigma: float, epsilon: float, sensitivity: float) -> float:
    """Return the least delta with which noise of this standard deviation is (epsilon, delta) private.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise on each number, in their unit.
    epsilon : float
    sensitivity : float
        How far one patient can move the numbers at most, as a Euclidean length in their unit.
    """
    half, pull = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    # exp(epsilon) alone overflows where the product is still small
    return float(ndtr(half - pull) - np.exp(epsilon + log_ndtr(-half - pull)))


@lru_cache(maxsize=64)
def sigma_for(epsilon: float, sensitivity: float, delta: float = DELTA) -> float:
    """Return the least standard deviation of noise that is (epsilon, delta) private, in the sum's unit.

    Raises
    ------
    ValueError
        A number is not above 0, or delta not below 1.
    """
    if not (epsilon > 0 and sensitivity > 0 and 0 < delta < 1):
        raise ValueError(
            f"noise: epsilon {epsilon:g}, sensitivity {sensitivity:g} and delta {delta:g} must be above 0, "
            "and delta below 1"
        )
    low, high = 0.0, 1.0
    while delta_of(high, epsilon, 1.0) > delta:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if delta_of(middle, epsilon, 1.0) > delta:
            low = middle
        else:
            high = middle
    return high * sensitivity


def keyed_normals(key: bytes, count: int) -> FloatArray:
    """Return standard normal numbers, shape (count,), that follow from a key; without it they are random.

    Parameters
    ----------
    key : bytes
        At least 32 from the operating system, for one answer alone.

    Raises
    ------
    PrivacyError
        The key is shorter than 32 bytes.
    """
    if len(key) < KEY_BYTES:
        raise PrivacyError(f"noise: its key has {len(key)} bytes; it needs at least {KEY_BYTES}")
    bits = np.frombuffer(hashlib.shake_256(_FOR_NOISE + key).digest(8 * count), dtype="<u8")
    normals: FloatArray = ndtri((bits >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53)
    return normals
