"""Gaussian noise that hides one patient in a sum, and that asking twice does not average out.

How much: the analytic Gaussian mechanism (B. Balle, Y.-X. Wang, "Improving the Gaussian mechanism for
differential privacy: analytical calibration and optimal denoising", ICML 2018, theorem 8). Which: numbers
that follow from the site's secret and from what they are added to, so that the same question has the same
answer, and another patient another noise.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue
from scipy.special import log_ndtr, ndtr, ndtri

from fedglioma.errors import IdentityError
from fedglioma.pseudonym import SECRET_BYTES

DELTA: Final = 1e-5
"""Probability with which a patient's privacy may be lost beyond epsilon."""
_FOR_NOISE: Final = b"FEDGLIOMA NOISE 1\n"
"""Before what is keyed. Ids are folded to small letters before theirs, so that no id is ever this."""

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


def steady_normals(secret: bytes, about: Mapping[str, JsonValue], count: int) -> FloatArray:
    """Return standard normal numbers, shape (count,), that follow from the secret and from what is said.

    The same secret and words give the same numbers, on every machine and with every version of numpy; to
    whoever lacks the secret they are random.

    Parameters
    ----------
    secret : bytes
        The site's (``pseudonym.py``).
    about : mapping
        What the noise is for: all that decides it, the true values among it.

    Raises
    ------
    IdentityError
        The secret is shorter than 32 bytes.
    """
    if len(secret) < SECRET_BYTES:
        raise IdentityError(f"the site's secret has {len(secret)} bytes; it needs at least {SECRET_BYTES}")
    text = json.dumps(dict(about), sort_keys=True, separators=(",", ":"), allow_nan=False)
    key = hmac.new(secret, _FOR_NOISE + text.encode(), hashlib.sha256).digest()
    bits = np.frombuffer(hashlib.shake_256(key).digest(8 * count), dtype="<u8")
    normals: FloatArray = ndtri((bits >> np.uint64(12)).astype(np.float64) * 2.0**-52 + 2.0**-53)
    return normals
