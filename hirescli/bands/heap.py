"""Memory that is freed goes back to the system, so that what is planned is what is measured."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache

# A band's temporaries come and go thousands of times, and asking the system anew for the pages of
# each took as long as half of the arithmetic. So blocks below 32 MiB, the most that glibc allows,
# are taken from the heap and stay there when freed; larger ones go back at once.
_FROM_HEAP_BYTES = 32 * 2**20
# Work of bands whose memory the next band takes over. Of larger bands, blocks above 32 MiB would
# come on top of it.
REUSED_BYTES = 64 * 2**20
HEAP_BYTES = 12 * 2**20  # that may lie free in the heap, beside what is counted
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
        mallopt(_M_MMAP_THRESHOLD, _FROM_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, REUSED_BYTES)


def trim() -> None:
    """Give all that is free in the heap back to the system; nothing without glibc."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


class HeapGuard:
    """Keeps the free part of the heap within what a computation was planned to take.

    Freed blocks leave holes of all sizes, and without a guard they add up: a decoder planned at
    76 MB measured 226 MB. What the process holds beside its values is therefore looked at
    between bands, and given back where it is more than planned.

    Args:
        counted_bytes: Of values that are alive now, in memory.
    """

    def __init__(self, counted_bytes: int) -> None:
        self._beside_bytes = (_resident_bytes() or 0) - counted_bytes

    def check(self, counted_bytes: int) -> None:
        """Trim if more is held than `counted_bytes`, of values and of a band, and the spare."""
        resident = _resident_bytes()
        if resident is None:
            return
        limit = self._beside_bytes + counted_bytes + HEAP_BYTES
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
