"""Seeds of everything random, derived from names, so that a resumed run draws what it would have drawn."""

import hashlib

import torch


def derive_seed(*parts: str | int) -> int:
    """Return a 63-bit seed that follows from the parts alone: run seed, site, round, purpose."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_torch(*parts: str | int) -> None:
    """Seed torch's generators on all devices from the parts."""
    torch.manual_seed(derive_seed(*parts))
