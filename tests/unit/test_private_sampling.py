"""Who takes part in a step: every patient alike, independently, unforeseeably; the random bits behind it."""

import math
from itertools import islice

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedglioma.errors import PrivacyError
from fedglioma.privacy.sampling import poisson_batches
from fedglioma.privacy.secret import SecretRandom

KEY = bytes(range(32))


def table(units: int, rate: float, steps: int) -> np.ndarray:
    """Return who took part when, (steps, units) of 0 and 1."""
    found = np.zeros((steps, units))
    for step, batch in enumerate(poisson_batches(units, rate, steps, SecretRandom(KEY))):
        found[step, batch] = 1
    return found


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_every_patient_takes_part_at_the_rate(rate: float) -> None:
    steps = 4000
    times = table(12, rate, steps).sum(0)
    for count in times:
        assert stats.binomtest(int(count), steps, rate).pvalue > 1e-4


def test_patients_and_steps_are_independent() -> None:
    found = table(8, 0.3, 6000)
    apart = np.corrcoef(found.T)[~np.eye(8, dtype=bool)]
    assert np.abs(apart).max() < 4.5 / math.sqrt(6000)
    following = [np.corrcoef(found[:-1, unit], found[1:, unit])[0, 1] for unit in range(8)]
    assert np.abs(following).max() < 4.5 / math.sqrt(6000)


def test_sizes_of_batches_are_binomial_and_the_empty_ones_are_there() -> None:
    steps = 5000
    sizes = table(6, 0.2, steps).sum(1).astype(int)
    expected = steps * stats.binom.pmf(range(7), 6, 0.2)
    counted = np.bincount(sizes, minlength=7)
    merged = [*counted[:4], counted[4:].sum()], [*expected[:4], expected[4:].sum()]
    assert stats.chisquare(*merged).pvalue > 1e-3
    assert counted[0] > 0


def test_everybody_takes_part_at_rate_one() -> None:
    assert list(poisson_batches(3, 1.0, 2, SecretRandom())) == [[0, 1, 2], [0, 1, 2]]


def test_site_without_patients_has_empty_steps() -> None:
    assert list(poisson_batches(0, 0.5, 3, SecretRandom())) == [[], [], []]


def test_draws_differ_every_time_and_repeat_with_a_key() -> None:
    def draws(secret: SecretRandom) -> list[list[int]]:
        return list(poisson_batches(50, 0.5, 4, secret))

    assert draws(SecretRandom()) != draws(SecretRandom())
    assert draws(SecretRandom(KEY)) == draws(SecretRandom(KEY))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_rate_out_of_range_is_refused_at_once(rate: float) -> None:
    with pytest.raises(PrivacyError, match="sampling rate"):
        poisson_batches(3, rate, 2, SecretRandom())


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(PrivacyError, match="at least 0"):
        poisson_batches(-1, 0.5, 2, SecretRandom())


def test_bits_are_those_of_aes_in_counter_mode() -> None:
    found = bytearray(3_000_000)
    SecretRandom(KEY).fill(memoryview(found))
    cipher = Cipher(algorithms.AES(KEY), modes.CTR(bytes(16))).encryptor()
    assert bytes(found) == cipher.update(bytes(len(found)))


def test_branches_are_streams_of_their_own() -> None:
    secret = SecretRandom(KEY)
    noise, sampling = secret.branch("noise").words(4), secret.branch("sampling").words(4)
    assert set(noise.tolist()).isdisjoint(sampling.tolist())
    secret.words(1000)
    assert secret.branch("noise").words(4).tolist() == noise.tolist()


def test_words_in_pieces_are_the_words_at_once() -> None:
    one, other = SecretRandom(KEY), SecretRandom(KEY)
    pieces = [other.words(count) for count in (1, 3, 0, 508, 700, 2)]
    first = one.words(512)
    assert np.array_equal(np.concatenate(pieces)[:512], first)


@settings(deadline=None, max_examples=25)
@given(limit=st.integers(1, 2**63))
def test_choices_lie_below_their_limit(limit: int) -> None:
    secret = SecretRandom(KEY)
    assert all(0 <= secret.below(limit) < limit for _ in range(5))


def test_choices_are_uniform() -> None:
    secret = SecretRandom(KEY)
    counts = np.bincount([secret.below(7) for _ in range(7000)], minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_choice_that_a_remainder_would_favour_is_drawn_again() -> None:
    class Rigged(SecretRandom):
        given = iter([2**64 - 1, 5])

        def words(self, count: int) -> np.ndarray:
            return np.array(list(islice(self.given, count)), np.uint64)

    assert Rigged().below(3) == 2  # 2^64 - 1 is alone beyond the last multiple of 3


def test_choice_among_none_is_refused() -> None:
    with pytest.raises(PrivacyError, match="at least 1"):
        SecretRandom().below(0)


def test_key_of_another_length_is_refused() -> None:
    with pytest.raises(PrivacyError, match="32 are needed"):
        SecretRandom(b"short")
