"""Memory that is freed goes back to the system, so that what is planned is what is measured."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

# glibc raises the size from which freed memory goes back at once as a program runs, up to 32 MiB;
# below it lies fragmented in the heap: a decoder planned at 76 MB measured 226 MB. Fixed at 2 MiB
# it measured 80 MB, and bands are mostly smaller, so they are not slower.
_BACK_AT_ONCE_BYTES = 2 * 2**20
HEAP_BYTES = 12 * 2**20  # kept at the top of the heap, beside what is counted
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@lru_cache(maxsize=1)
def steady_heap() -> None:
    """Fix glibc's thresholds for this process, once; nothing with another C library.

    Who sets MALLOC_MMAP_THRESHOLD_ keeps what was set.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _BACK_AT_ONCE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, HEAP_BYTES)
