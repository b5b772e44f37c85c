"""A small copy of a picture, folded from bands: for the eye, and to look for repetition in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Reduced:
    """Means of squares of pixels, coded as stored; what is left over at the ends is left out.

    Args:
        width_px, height_px: Of the picture.
        most_px: The longest side of the copy.

    Attributes:
        factor: Side of a square in pixels.
    """

    def __init__(self, width_px: int, height_px: int, most_px: int) -> None:
        self.factor = -(-max(width_px, height_px) // most_px)
        # Of a ribbon less than a square across, nothing would be left.
        self.factor = max(1, min(self.factor, width_px, height_px))
        self._width = width_px // self.factor
        self._sum: NDArray[Any] = np.zeros(0)
        self._rows_in_sum = 0
        self._made: list[NDArray[np.float32]] = []

    def fold(self, rows: NDArray[Any]) -> None:
        """Take the next rows, (n, width, 3), uint8 or uint16."""
        y, n = 0, rows.shape[0]
        while y < n:
            taken = min(n - y, self.factor - self._rows_in_sum)
            part = rows[y : y + taken].sum(axis=0, dtype=np.uint32)  # (width, 3)
            self._sum = part if self._rows_in_sum == 0 else self._sum + part
            self._rows_in_sum += taken
            y += taken
            if self._rows_in_sum == self.factor:
                self._made.append(self._row(np.iinfo(rows.dtype).max))
                self._rows_in_sum = 0

    def finish(self) -> NDArray[np.float32]:
        """The copy, (height, width, 3), sRGB-coded, 0 to 1."""
        return np.stack(self._made)

    def _row(self, top: int) -> NDArray[np.float32]:
        squares = self._sum[: self._width * self.factor].reshape(self._width, self.factor, 3)
        mean = squares.sum(axis=1, dtype=np.uint64) / (self.factor**2 * top)
        made: NDArray[np.float32] = mean.astype(np.float32)
        return made
