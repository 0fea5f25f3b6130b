"""Random bytes that nobody else can know: which patients take part, and the noise that hides them."""

import hashlib
import hmac
import os
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedglioma.errors import PrivacyError

KEY_BYTES = 32
_BLOCK_BYTES = 1 << 20
_WORDS_AHEAD = 512


class SecretRandom:
    """A stream of random bits: AES-256 in counter mode, under a key from the operating system.

    Never from a run's seed: the server knows it, and whoever knows the noise can subtract it. A new object
    has a new key, which is written nowhere, so a round that is run again has other noise; the first one's
    update never left the site, or counts as spent.

    Parameters
    ----------
    key : bytes, optional
        32 bytes, for tests: with it everything repeats itself.

    Raises
    ------
    PrivacyError
        The key has another length.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise PrivacyError(f"secret key of {len(key)} bytes: {KEY_BYTES} are needed")
        self._key = os.urandom(KEY_BYTES) if key is None else key
        # The counter starts at 0: a key is used for one stream only.
        self._cipher = Cipher(algorithms.AES(self._key), modes.CTR(bytes(16))).encryptor()
        self._zeros = bytes(_BLOCK_BYTES)
        self._words: NDArray[np.uint64] = np.empty(0, np.uint64)

    def branch(self, purpose: str) -> Self:
        """Return a stream of its own for a purpose: what one use draws does not move another."""
        return type(self)(hmac.new(self._key, purpose.encode(), hashlib.sha256).digest())

    def fill(self, buffer: memoryview) -> None:
        """Overwrite a buffer of bytes with random ones."""
        view = buffer.cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            part = view[start : start + _BLOCK_BYTES]
            # A stream cipher's output for zeros is its key stream.
            self._cipher.update_into(memoryview(self._zeros)[: len(part)], part)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return integers, each of 0 to 2^64 - 1 as likely as another, (count,)."""
        if count > len(self._words):
            fresh = np.empty(max(count, _WORDS_AHEAD), np.uint64)
            self.fill(fresh.data)
            self._words = np.concatenate((self._words, fresh))
        found, self._words = self._words[:count], self._words[count:]
        return found

    def below(self, limit: int) -> int:
        """Return an integer of 0 to ``limit`` - 1, each exactly as likely as another.

        Raises
        ------
        PrivacyError
            The limit is below 1.
        """
        if not 1 <= limit <= 2**63:
            raise PrivacyError(f"a random choice among {limit}: at least 1 is needed")
        # A remainder alone would favour small numbers: what lies beyond the last multiple is drawn again.
        usable = 2**64 - 2**64 % limit
        while True:
            word = int(self.words(1)[0])
            if word < usable:
                return word % limit
