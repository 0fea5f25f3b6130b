"""The computer that a program runs on: its cores, and how its memory is given back."""

import ctypes
import os
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MAPPED_FROM: Final = 16 << 20
_TRIMMED_FROM: Final = 64 << 20
_ARENAS: Final = 2


def usable_cores() -> int:
    """Return the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def return_freed_memory() -> bool:
    """Set the allocator's limits, and return whether this system can; to be called before threads start.

    By default glibc keeps freed buffers in an arena per thread and raises the size from which it maps
    them separately as it goes: a server that moves weights in chunks through a pool of threads then
    holds many times its payload for ever. Two arenas hold the chunks of a few megabytes, which are used
    again and again (mapping each anew costs more than copying it); whole weights are above the limit and
    go back to the system when they are freed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    limits = (
        (_M_MMAP_THRESHOLD, _MAPPED_FROM),
        (_M_TRIM_THRESHOLD, _TRIMMED_FROM),
        (_M_ARENA_MAX, _ARENAS),
    )
    accepted = [bool(mallopt(name, value)) for name, value in limits]
    return all(accepted)
