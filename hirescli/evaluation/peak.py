"""Peak memory of one call, in this process, as the system measures it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from hirescli.bands.heap import trim
from hirescli.planning.machine import peak_rss_bytes

# Written to by a process, "5" makes its peak (VmHWM) start again from what is resident now.
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Resident memory of this process.

    Attributes:
        baseline_bytes: Just before, with what the allocator kept for later given back.
        above_bytes: The most at any time in between, less the baseline; known at the end.
    """

    baseline_bytes: int
    above_bytes: int = 0


def can_reset() -> bool:
    """Whether the system can measure one call after another in the same process."""
    return os.access(_CLEAR_REFS, os.W_OK)


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure while the context lasts.

    Where the peak cannot be reset it is that of the process since it began, so that only the
    largest call of a process is measured rightly.
    """
    give_back()
    if can_reset():
        _CLEAR_REFS.write_text("5")
    peak = Peak(psutil.Process().memory_info().rss)
    yield peak
    peak.above_bytes = max(0, peak_rss_bytes() - peak.baseline_bytes)


def give_back() -> None:
    """Return what is free to the system: kept by the allocator, it would hide the next use."""
    gc.collect()
    trim()
