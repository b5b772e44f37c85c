"""Pixels that are repeated: what an enlargement by nearest neighbour leaves.

Enlarged k times that way, the columns differ from those before them at every k-th place only, and
so do the rows. With D[x] the mean of |luma[y, x] - luma[y, x - 1]| over y, and D of a phase its
mean over all x of one remainder by k, at most one phase of k is then above `_QUIET` times the
largest. What JPEG adds stays below that at quality 92; in pictures, all phases are alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST = 8
_QUIET = 0.4
_LEAST_LEVELS = 0.05  # of the largest phase: less is rounding


class Repeats:
    """Mean differences of adjacent columns and rows, folded from bands of luma.

    Args:
        width_px, height_px: Of the picture.
    """

    def __init__(self, width_px: int, height_px: int) -> None:
        self._columns = np.zeros(width_px - 1)
        self._rows = np.zeros(height_px - 1)
        self._last = np.empty((0, width_px), dtype=np.float32)
        self._y = 0

    def fold(self, luma: NDArray[np.float32]) -> None:
        """Take the next rows, (n, width), in levels of 255."""
        self._columns += _sizes(luma[:, 1:] - luma[:, :-1], axis=0)
        both = np.concatenate([self._last, luma])
        down = _sizes(both[1:] - both[:-1], axis=1)
        self._rows[self._y : self._y + len(down)] = down
        self._y += len(down)
        self._last = luma[-1:].copy()

    def finish(self) -> int:
        """How often each pixel is repeated to the right and below, 1 to 8; 1: it is not."""
        height, width = len(self._rows) + 1, len(self._columns) + 1
        across, down = _repeated(self._columns / height), _repeated(self._rows / width)
        return max((k for k in across if k in down), default=1)


def _repeated(differences: NDArray[Any]) -> list[int]:
    """The factors for which all phases but one are quiet."""
    found = []
    for k in range(2, _MOST + 1):
        if len(differences) < 2 * k:
            break
        *quiet, loudest = sorted(differences[phase::k].mean() for phase in range(k))
        if loudest >= _LEAST_LEVELS and max(quiet) <= _QUIET * loudest:
            found.append(k)
    return found


def _sizes(differences: NDArray[np.float32], axis: int) -> NDArray[Any]:
    made: NDArray[Any] = np.abs(differences, out=differences).sum(axis=axis)
    return made
