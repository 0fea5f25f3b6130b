"""Masks: streams of numbers that follow from a key, and are random to whoever lacks it.

The stream is AES-256 in counter mode from 0, read as 32-bit numbers, the least significant byte first. A key
makes one stream only, so the counter may begin at the same place each time. ChaCha20 was slower wherever the
processor knows AES (``docs/secure-aggregation.md``).
"""

from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedglioma.privacy.fixed_point import BLOCK, Words

_COUNTER: Final = bytes(16)
_ZEROS: Final = memoryview(bytes(4 * BLOCK))


def add_stream(vector: Words, key: bytes, *, subtract: bool = False) -> None:
    """Add a key's stream to a vector of shape (n,), or subtract it, in place and modulo 2^32.

    Needs half a megabyte besides the vector, whatever its length.

    Parameters
    ----------
    vector : array of uint32
    key : bytes
        32 of them, never used for anything else.
    """
    encryptor = Cipher(algorithms.AES(key), modes.CTR(_COUNTER)).encryptor()
    room = memoryview(bytearray(4 * BLOCK))
    stream = np.frombuffer(room, "<u4")
    for start in range(0, vector.size, BLOCK):
        block = vector[start : start + BLOCK]
        encryptor.update_into(_ZEROS[: 4 * block.size], room[: 4 * block.size])
        if subtract:
            block -= stream[: block.size]
        else:
            block += stream[: block.size]
