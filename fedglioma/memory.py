"""Large buffers go back to the system when they are freed.

By default glibc raises the size from which it maps buffers separately to that of the largest one freed,
up to 32 MB, and keeps smaller ones in an arena per thread: a server that moves weights in chunks through
a pool of threads then holds many times its payload for ever.
"""

import ctypes
import sys
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MAPPED_FROM: Final = 1 << 20
_ARENAS: Final = 2


def return_freed_memory() -> bool:
    """Fix the allocator's threshold at 1 MB and its arenas at two; whether this system can.

    To be called before threads are started.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)) and bool(mallopt(_M_ARENA_MAX, _ARENAS))
