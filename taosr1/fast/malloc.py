"""Keep freed memory in the process: the C library's allocator, told not to return it to the system."""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt, from the GNU C library's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 2**25  # bytes, the most that M_MMAP_THRESHOLD may be: larger tensors are still returned to the system
MOST_KEPT = 2**31 - 1  # bytes


def keep_freed_memory() -> bool:
    """Ask the C library not to return freed memory to the system; returns whether it will. Peak memory hardly changes.

    Every operation on a CPU makes a tensor and frees another. By default those of a few MiB are returned to the system,
    which must find, clear and map the pages of the next one: a third of the time of scoring with a small model, on a
    virtual machine (`examples/guide/speed.md`). A user's own MALLOC_ variables are left alone; so are other C
    libraries, which have other rules.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # macOS, Windows
        return False
    return all([mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT), mallopt(M_TRIM_THRESHOLD, MOST_KEPT)])
