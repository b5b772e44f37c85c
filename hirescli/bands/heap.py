"""Memory that is freed goes back to the system, so that what is planned is what is measured."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache

# glibc raises the size from which freed memory goes back at once as a program runs, up to 32 MiB;
# below it lies fragmented in the heap: a decoder planned at 76 MB measured 226 MB. Fixed at 2 MiB
# it measured 80 MB, and bands are mostly smaller, so they are not slower.
_BACK_AT_ONCE_BYTES = 2 * 2**20
HEAP_BYTES = 6 * 2**20  # that may lie free in the heap, beside what is counted
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LEAST_TRIMMED_BYTES = 2**20


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


@cache
def steady_heap() -> None:
    """Fix glibc's thresholds for this process, once; nothing with another C library.

    Who sets MALLOC_MMAP_THRESHOLD_ keeps what was set.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_THRESHOLD, _BACK_AT_ONCE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, HEAP_BYTES)


def trim() -> None:
    """Give all that is free in the heap back to the system; nothing without glibc."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


class HeapGuard:
    """Keeps the free part of the heap small while a computation runs.

    Blocks below the threshold come and go in all sizes and leave holes: up to 46 MB of them were
    measured beside 80 MB of values. What the process holds beyond its values is therefore looked
    at between bands, and given back where it is more than `HEAP_BYTES`.

    Args:
        counted_bytes: Of values that are alive now, in memory.
    """

    def __init__(self, counted_bytes: int) -> None:
        self._spare_bytes = HEAP_BYTES
        self._beside_bytes = (_resident_bytes() or 0) - counted_bytes

    def check(self, counted_bytes: int) -> None:
        """Trim if more is held than `counted_bytes` of values and the spare."""
        resident = _resident_bytes()
        if resident is None:
            return
        limit = self._beside_bytes + counted_bytes + self._spare_bytes
        if resident <= limit:
            return
        trim()
        left = _resident_bytes() or 0
        if resident - left < _LEAST_TRIMMED_BYTES:  # held by something else: look again later
            self._beside_bytes += left - limit + _LEAST_TRIMMED_BYTES


def _resident_bytes() -> int | None:
    """Resident memory of this process; None where the system does not say it so."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
