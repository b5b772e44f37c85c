"""Enlarging pictures in bounded memory, rows in and rows out.

The result does not depend on the band height, bit for bit: every output sample is the same
few multiplications and additions in the same order, whatever rows are computed beside it.
Matrix products would be faster to write, but their summation order changes with the shape.

References:
    Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981 (a = -1/2).
    Duchon, "Lanczos Filtering in One and Two Dimensions", 1979 (three lobes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kernel = Literal["bicubic", "lanczos3"]


class RowSource(Protocol):
    """What rows are read from: a `Spool`, or an array by `ArrayRows`."""

    @property
    def width_px(self) -> int:
        """Columns of the picture."""

    @property
    def height_px(self) -> int:
        """Rows of the picture."""

    def read_rows(self, y0: int, n: int) -> NDArray[Any]:
        """Rows y0 to y0 + n: (n, width_px, 3); uint8, uint16, or float in [0, 1]."""


class ArrayRows:
    """A picture in memory, (height, width, 3), as a `RowSource`."""

    def __init__(self, picture: NDArray[Any]) -> None:
        assert picture.shape[2:] == (3,), f"shape {picture.shape}"
        self._picture = picture
        self.height_px, self.width_px = picture.shape[:2]

    def read_rows(self, y0: int, n: int) -> NDArray[Any]:
        """Rows y0 to y0 + n, a view."""
        return self._picture[y0 : y0 + n]


def resized_rows(
    source: RowSource, *, width_px: int, height_px: int, rows: int, kernel: Kernel = "bicubic"
) -> Iterator[NDArray[np.float32]]:
    """Enlarge a picture and yield it from top to bottom.

    Args:
        source: The picture to enlarge.
        width_px: Columns of the result, at least those of the source.
        height_px: Rows of the result, at least those of the source.
        rows: Rows of the result per band; the last band may have fewer. It bounds the memory
            and does not change a single bit.
        kernel: "bicubic" (4 x 4 source pixels) or "lanczos3" (6 x 6).

    Yields:
        Bands (n, width_px, 3), float32 in [0, 1].
    """
    assert rows >= 1, f"{rows} rows per band"
    picture = Resized(source, width_px=width_px, height_px=height_px, kernel=kernel)
    for y0 in range(0, height_px, rows):
        yield picture.rows(y0, min(y0 + rows, height_px))


class Resized:
    """An enlarged picture of which any rows can be had; from top to bottom is quickest.

    Args:
        source: The picture to enlarge.
        width_px: Columns of the result, at least those of the source.
        height_px: Rows of the result, at least those of the source.
        kernel: "bicubic" or "lanczos3".
    """

    def __init__(
        self, source: RowSource, *, width_px: int, height_px: int, kernel: Kernel = "bicubic"
    ) -> None:
        self._lines = _Taps(source.height_px, height_px, kernel)
        self._kept = _KeptRows(source, _Taps(source.width_px, width_px, kernel))

    def rows(self, y0: int, y1: int) -> NDArray[np.float32]:
        """Rows y0 to y1 of the result: (y1 - y0, width_px, 3), float32 in [0, 1]."""
        index, weight = self._lines.index[:, y0:y1], self._lines.weight[:, y0:y1]
        first, last = int(index[0].min()), int(index[-1].max())
        return _vertical(self._kept.rows(first, last + 1), index - first, weight)


class _Taps:
    """Which source samples make each output sample of one axis, and with what weight.

    Attributes:
        index: (taps, target) source positions, in range, ascending along the taps.
        weight: (taps, target) float32, zero where a tap lies outside the source; the rest is
            normalised to sum 1, so edges neither darken nor repeat pixels.
    """

    def __init__(self, source: int, target: int, kernel: Kernel) -> None:
        assert 1 <= source <= target, f"enlarging only: {source} to {target}"
        function, radius = _KERNELS[kernel]
        # Pixel centres: output i covers source position (i + 1/2) * source / target.
        centre = (np.arange(target) + 0.5) * source / target - 0.5
        start = np.floor(centre).astype(np.int64) - radius + 1
        position = start + np.arange(2 * radius)[:, None]
        weight = function(position - centre)
        weight[(position < 0) | (position >= source)] = 0
        self.index = np.clip(position, 0, source - 1)
        self.weight = (weight / weight.sum(axis=0)).astype(np.float32)


class _KeptRows:
    """Horizontally enlarged source rows; those that the next band needs again are kept."""

    def __init__(self, source: RowSource, columns: _Taps) -> None:
        self._source = source
        self._columns = columns
        self._first = 0
        self._kept = np.empty((0, columns.index.shape[1], 3), dtype=np.float32)

    def rows(self, first: int, end: int) -> NDArray[np.float32]:
        """Source rows first to end, enlarged to the result's width."""
        inside = self._first <= first <= self._first + self._kept.shape[0]
        kept = self._kept[first - self._first :] if inside else self._kept[:0]
        y0 = first + kept.shape[0]
        if y0 < end:
            fresh = _horizontal(_as_float(self._source.read_rows(y0, end - y0)), self._columns)
            kept = np.concatenate([kept, fresh]) if kept.shape[0] else fresh
        self._first, self._kept = first, kept
        return kept[: end - first]


def _as_float(rows: NDArray[Any]) -> NDArray[np.float32]:
    if rows.dtype.kind == "f":
        return rows.astype(np.float32, copy=False)
    return rows.astype(np.float32) * np.float32(1 / np.iinfo(rows.dtype).max)


def _horizontal(rows: NDArray[np.float32], taps: _Taps) -> NDArray[np.float32]:
    total = np.zeros((rows.shape[0], taps.index.shape[1], 3), dtype=np.float32)
    for index, weight in zip(taps.index, taps.weight, strict=True):
        part = np.take(rows, index, axis=1)
        part *= weight[None, :, None]
        total += part
    return total


def _vertical(
    rows: NDArray[np.float32], index: NDArray[np.int64], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    total = np.zeros((index.shape[1], *rows.shape[1:]), dtype=np.float32)
    for y in range(index.shape[1]):  # per row: the temporaries stay in the processor's cache
        for tap in range(index.shape[0]):
            total[y] += rows[index[tap, y]] * weight[tap, y]
    # Both kernels overshoot at edges; a picture has nothing below black or above white.
    return np.clip(total, 0, 1, out=total)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    t = np.abs(distance)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def _lanczos3(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    weight = np.sinc(distance) * np.sinc(distance / 3)
    return np.where(np.abs(distance) < 3, weight, 0.0)


_KERNELS: dict[Kernel, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], int]] = {
    "bicubic": (_cubic, 2),
    "lanczos3": (_lanczos3, 3),
}
