"""Normal noise for gradients, from a stream that nobody can foresee."""

import math
import os

import numpy as np
import torch
from torch import Tensor

from fedglioma.privacy.secret import SecretRandom

_PAIRS = 1 << 16
"""Numbers made at a time, halved: what they need then stays in the processor's cache."""
_RARE = 128
"""Radii of the 2^-24 rarest draws are drawn finer."""


class NoiseSource:
    """Adds independent normal noise to tensors.

    On a processor: 62 bits of ``SecretRandom`` for each pair of numbers, made normal by Box and Muller's
    transformation (Annals of Mathematical Statistics 29, 1958, 610-611) in single precision. A radius from 31
    bits would end at 6.6 standard deviations; the rarest of them get 53 bits more, so that the tails are
    right to beyond 10, of which no training ever sees one. Tensors in double precision get the same numbers:
    the noise has 24 significant bits.

    On a GPU: torch's generator of that device (Philox), seeded with 64 bits from the operating system. That
    is no cryptographic generator: nobody is known to foresee it from its output, and nobody has shown that it
    cannot be done.

    What is not done: noise from floating-point numbers does not reach every real number, and the low bits of
    a sum may say what was added (I. Mironov, "On significance of the least significant bits for differential
    privacy", CCS 2012). Here the sum itself is never seen, only weights after Adam's steps over a round,
    which round and mix it; that makes the attack hard and is no proof against it. Epsilon holds for the ideal
    mechanism.
    """

    def __init__(self, secret: SecretRandom) -> None:
        self._secret = secret
        self._words = np.empty(2 * _PAIRS, np.int32)
        self._radius = np.empty(_PAIRS, np.float32)
        self._angle = np.empty(_PAIRS, np.float32)
        self._normal = np.empty(2 * _PAIRS, np.float32)
        self._generators: dict[torch.device, torch.Generator] = {}

    def add_to(self, tensor: Tensor, std: float) -> None:
        """Add to each number of a tensor, in place, independent normal noise of a standard deviation."""
        if tensor.device.type != "cpu":
            self._add_on_device(tensor, std)
            return
        # In the order of memory; one number more is made than an odd tensor needs.
        flat = _flat(tensor)
        for start in range(0, flat.numel(), 2 * _PAIRS):
            part = flat[start : start + 2 * _PAIRS]
            part.add_(self._normals(part.numel()), alpha=std)
        if flat.data_ptr() != tensor.data_ptr():
            tensor.copy_(flat.view(tensor.shape))

    def _normals(self, count: int) -> Tensor:
        """Return standard normal numbers, (count,) float32; what an earlier call returned is overwritten."""
        # In NumPy: its logarithm, sine and cosine take less than half of the time of torch's.
        pairs = (count + 1) // 2
        words, radius, angle = self._words[: 2 * pairs], self._radius[:pairs], self._angle[:pairs]
        self._secret.fill(words.data)
        first, second = words[:pairs], words[pairs:]
        np.bitwise_and(first, 2**31 - 1, out=first)
        np.copyto(radius, first, casting="unsafe")
        radius += 0.5
        radius *= 2.0**-31
        if first.min() < _RARE:
            rare = np.flatnonzero(first < _RARE)
            finer = ((self._secret.words(len(rare)) >> 11) + 0.5) * 2.0**-53
            radius[rare] = (first[rare] + finer) * 2.0**-31
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        np.copyto(angle, second, casting="unsafe")
        angle *= math.pi * 2.0**-31
        normal = self._normal[: 2 * pairs]
        np.multiply(np.cos(angle, out=normal[:pairs]), radius, out=normal[:pairs])
        np.multiply(np.sin(angle, out=normal[pairs:]), radius, out=normal[pairs:])
        return torch.from_numpy(normal[:count])

    def _add_on_device(self, tensor: Tensor, std: float) -> None:
        generator = self._generators.get(tensor.device)
        if generator is None:
            generator = torch.Generator(tensor.device)
            generator.manual_seed(int.from_bytes(os.urandom(8)) >> 1)
            self._generators[tensor.device] = generator
        noise = torch.empty_like(tensor).normal_(0.0, std, generator=generator)
        tensor.add_(noise)


def _flat(tensor: Tensor) -> Tensor:
    """Return a tensor's numbers in a row: its own memory, or a copy where there are gaps in it."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    ordered = tensor.permute(order)
    return ordered.view(-1) if ordered.is_contiguous() else tensor.reshape(-1)
