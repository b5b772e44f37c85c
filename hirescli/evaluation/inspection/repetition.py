r"""Repetition: patterns that come again at a distance.

Windowed attention repeats patterns where its window is too small, and models repeat scenes above
their native size. Both show as a peak of the autocorrelation away from its centre. Plain
autocorrelation of pictures is broad, and straight edges give it ridges, so:

- x, the luma, is taken with its mean removed and a window W that falls to 0 at the edges.
- F = FFT(x W), zero-padded twofold; S = |F|^2 is whitened by its own mean over neighbouring
  frequencies, and frequencies outside of 1/`_COARSEST_PX` to 1/`_FINEST_PX` cycles a pixel are
  left out. Without repetition what is left is noise.
- r = IFFT(S), divided by its value at lag 0 and by how much two copies of the window overlap.
- The score of a lag is r there less the largest r on a ring around it (6 to 8 px away), so that
  ridges, the trace of a straight edge, count nothing; the score is the largest over lags from
  `LEAST_LAG_PX` to half the side, 0 to 1: about the share of the picture that comes again.

Done for the whole picture, shrunk to at most `REDUCED_PX` (scenes that repeat), and for up to
`CROPS` squares of `CROP_PX` at full resolution (textures that repeat), of which the third
highest counts: a brick wall in a corner is no fault.

References:
    Generalised cross-correlation with whitening: Knapp and Carter, 1976.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
REDUCED_PX = 1024
CROP_PX = 512
CROPS = 25
LEAST_LAG_PX = 12
LEAST_PX = 64
_FINEST_PX, _COARSEST_PX = 2.5, 32.0
_RING_PX = (6, 8)
_WHITEN = 15
_LEAST_DEVIATION = 0.3  # levels: flatter squares hold rounding only


@dataclass(frozen=True)
class Peak:
    """The strongest repetition.

    Attributes:
        score: 0 (none) to 1 (an exact copy everywhere).
        lag_px: Columns and rows from a pattern to its copy, in pixels of the picture.
    """

    score: float
    lag_px: tuple[int, int]


class Crops:
    """Squares of a picture at full resolution, evenly spread, folded from bands of luma."""

    def __init__(self, width_px: int, height_px: int) -> None:
        side = min(CROP_PX, width_px, height_px)
        across = _starts(width_px, side)
        down = _starts(height_px, side)
        self._places = [(x, y) for y in down for x in across]
        self._made = [np.zeros((side, side), dtype=np.float32) for _ in self._places]
        self._side, self._y = side, 0

    def fold(self, luma: NDArray[np.float32]) -> None:
        """Take the next rows, (n, width)."""
        for (x, y), crop in zip(self._places, self._made, strict=True):
            first, end = max(y, self._y), min(y + self._side, self._y + luma.shape[0])
            if first < end:
                piece = luma[first - self._y : end - self._y, x : x + self._side]
                crop[first - y : end - y] = piece
        self._y += luma.shape[0]

    def finish(self) -> Peak | None:
        """The third highest of the squares; None if the picture is below `LEAST_PX`."""
        if self._side < LEAST_PX:
            return None
        peaks = sorted((strongest(crop) for crop in self._made), key=lambda peak: -peak.score)
        return peaks[min(2, len(peaks) - 1)]


def strongest(luma: Floats, scale: int = 1) -> Peak:
    """The strongest repetition in a picture.

    Args:
        luma: (height, width), in levels of 255; each side at least `LEAST_PX`.
        scale: Pixels of the whole picture that one of these stands for.
    """
    return peak(scores(luma), scale)


def peak(found: Floats, scale: int = 1) -> Peak:
    """The largest of the scores of all lags."""
    row, column = np.unravel_index(int(found.argmax()), found.shape)
    half = found.shape[1] // 2
    return Peak(float(found[row, column]), ((int(column) - half) * scale, int(row) * scale))


def scores(luma: Floats) -> Floats:
    """The score of each lag, 0 to 1, placed as those of `autocorrelation`."""
    height, width = luma.shape
    if float(luma.std()) < _LEAST_DEVIATION:
        return np.zeros((height // 2 + 1, width // 2 * 2 + 1))
    r = autocorrelation(luma)
    made: Floats = np.clip(r - _ring(r), 0, 1)
    half = r.shape[1] // 2
    y, x = np.ogrid[: r.shape[0], -half : half + 1]
    made[(np.hypot(y, x) < LEAST_LAG_PX) | ((y == 0) & (x < 0))] = 0
    return made


def autocorrelation(luma: Floats) -> Floats:
    """r, whitened: (height // 2 + 1, 2 (width // 2) + 1), the lag 0 in the middle of row 0."""
    height, width = luma.shape
    # Single precision: for the largest copy, half of 100 MB.
    window = np.outer(_taper(height), _taper(width)).astype(np.float32)
    x = ((luma - np.average(luma, weights=window)) * window).astype(np.float32)
    size = (2 * height, 2 * width)
    power = np.abs(np.fft.rfft2(x, size)) ** 2
    power /= _box(power, _WHITEN) + 1e-12 * power.max()
    power[~_band(size)] = 0
    overlap = np.fft.irfft2(np.abs(np.fft.rfft2(window, size)) ** 2, size)
    r = np.fft.irfft2(power, size) / np.maximum(overlap / overlap[0, 0], 0.1)
    rows, half = height // 2 + 1, width // 2
    made: Floats = np.concatenate([r[:rows, -half:], r[:rows, : half + 1]], axis=1) / r[0, 0]
    return made


def _band(size: tuple[int, int]) -> NDArray[np.bool_]:
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    band: NDArray[np.bool_] = (frequency > 1 / _COARSEST_PX) & (frequency < 1 / _FINEST_PX)
    return band


def _taper(side: int) -> Floats:
    """1 in the middle, cosine slopes of an eighth of the side at both ends."""
    edge = max(1, side // 8)
    slope = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)
    return np.concatenate([slope, np.ones(side - 2 * edge), slope[::-1]])


def _box(values: Floats, side: int) -> Floats:
    """Means of side x side neighbours; at the edges the picture goes on mirrored."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (side // 2 + 1, side // 2)
        sums = np.cumsum(np.pad(values, pad, mode="reflect"), axis=axis, dtype=np.float64)
        first, last = [slice(None)] * 2, [slice(None)] * 2
        first[axis], last[axis] = slice(None, -side), slice(side, None)
        values = (sums[tuple(last)] - sums[tuple(first)]) / side
    return values


def _ring(r: Floats) -> Floats:
    """The largest value 6 to 8 px away, and at least 0."""
    far = _RING_PX[1]
    padded = np.pad(r, far)
    made = np.zeros_like(r)
    for dy in range(-far, far + 1):
        for dx in range(-far, far + 1):
            if _RING_PX[0] <= np.hypot(dy, dx) <= far:
                moved = padded[far + dy :, far + dx :][: r.shape[0], : r.shape[1]]
                np.maximum(made, moved, out=made)
    return made


def _starts(side_px: int, crop_px: int) -> list[int]:
    """Where up to five squares begin that lie evenly along a side."""
    count = max(1, min(round(CROPS**0.5), side_px // crop_px))
    return [round(i * (side_px - crop_px) / max(1, count - 1)) for i in range(count)]
