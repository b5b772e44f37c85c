r"""Seams: straight lines at regular distances across which a picture jumps.

A decoder that works in tiles leaves them, and so do blended tiles: the jump is then a ramp of the
overlap's width. The eye finds jumps of one level of 255 in a sky, because they are long. So the
jump is averaged along the line before it is squared or compared: grain averages out, a seam does
not. For the lines between columns (rows are the same, transposed):

- C[b, x] is the mean of luma Y in column x and block b of rows; there are at most `MOST_BLOCKS`
  blocks (and once more in blocks `_LONGER` times as long). The same is done with R - Y and B - Y,
  in the long blocks alone: the eye sees shifts of colour in large pieces only.
- The jump beyond what goes on to both sides, with d[x] = C[b, x] - C[b, x - 1]:
  J[b, x] = d[x] - (d[x - 1] + d[x + 1]) / 2.
- Its size beside its neighbours', clipped, so that a single strong edge cannot count as many:
  t[b, x] = min(|J[b, x]| / (mean of |J[b, x + i]|, 2 <= |i| <= 8, + 0.05 levels), 6).
- P[x], the mean of t over blocks, divided by the median of P over all lines of the same
  remainder by 16, and then by 3: what JPEG, decoders of latents and enlargements do in every
  2nd, 3rd, 8th or 16th column cancels.
- The ratio of a period p and an offset o is the mean of P over the lines o, o + p, o + 2p, ...
  without their largest quarter (rounded up): one horizon is no seam. Without seams it is 1.
- z: the ratio less the median ratio of that p over all o, in robust deviations (1.4826 times the
  median absolute one), where each is at least what an average of that many lines has.

The largest z of all periods is found, and of those that reach 0.7 of it the one with the most
lines: of 512 px, 1024 px is an echo. Periods are the multiples of 8 px from 64 px to 4096 px (and
at most half a side), the file's tile size, and the distances of the strongest lines. All is done
again with columns averaged by 2, 4, ..., 32: a ramp over 32 px is a jump there.

Two lines or more make a seam.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hirescli.evaluation.inspection.tones import LUMA

Floats = NDArray[np.floating[Any]]
Axis = Literal["columns", "rows"]
Channel = Literal["Y", "R-Y", "B-Y"]
CHANNELS: tuple[Channel, ...] = ("Y", "R-Y", "B-Y")
# From red, green and blue to those.
_OF_RGB = np.stack([LUMA, np.eye(3)[0] - LUMA, np.eye(3)[2] - LUMA], axis=1)
LEAST_PX = 160  # a shorter side has no two lines of a period to speak of
MOST_BLOCKS = 256
_LEAST_BLOCK_PX = 16
_LONGER = 8
_LEAST_PERIOD_PX, _MOST_PERIOD_PX, _PERIOD_STEP_PX = 64, 4096, 8
_LEAST_PERIOD_LINES = 16  # of an averaged profile
_AROUND = 8
_CLIP = 6.0
_FLOOR = 0.05  # levels: what rounding to 8 bits leaves of a mean over 16 px and more
_FINE_PX = 16
_ENLARGED = 3  # of pixels that are 3 to 1, or 3 to 2
_MOST_SCALE = 32
_STRONGEST = 8
_ECHO = 0.7


@dataclass(frozen=True)
class Seam:
    """The strongest regular lines of one direction.

    Attributes:
        axis: "columns": vertical lines; "rows": horizontal ones.
        period_px, offset_px: The lines lie before the pixels offset + k * period. An edge of the
            picture is no line: offset is 1 or more, and at most the period.
        ratio: Of the jump there to that elsewhere; 1 without seams, at most about 6.
        z: Confidence, in deviations of the same ratio at other offsets.
        ramp_px: Width over which the jump is spread: 1 (sharp) to 32 (blended).
        lines: How many there are.
        channel: In which the picture jumps.
    """

    axis: Axis
    period_px: int
    offset_px: int
    ratio: float
    z: float
    ramp_px: int
    lines: int
    channel: Channel = "Y"


class LineMeans:
    """Means of Y, R - Y and B - Y along pieces of columns and rows, folded from bands.

    All three are sums of red, green and blue: the bands are reduced along lines once, and what
    is left of them is mixed.

    Args:
        width_px, height_px: Of the picture.
    """

    def __init__(self, width_px: int, height_px: int) -> None:
        self._block_rows, self._block_columns = _block_px(height_px), _block_px(width_px)
        blocks_down, blocks_across = height_px // self._block_rows, width_px // self._block_columns
        self._columns = np.zeros((3, blocks_down, width_px), dtype=np.float32)
        self._rows = np.zeros((3, blocks_across, height_px), dtype=np.float32)
        self._sum = np.zeros((width_px, 3), dtype=np.uint32)  # of the block under way
        # From the pixels of a block in one row to its three means.
        self._mean = np.tile(_OF_RGB / self._block_columns, (self._block_columns, 1))
        self._y = 0

    def fold(self, band: NDArray[Any]) -> None:
        """Take the next rows, (n, width, 3), uint8 or uint16."""
        scale = np.float32(255 / np.iinfo(band.dtype).max)
        n, blocks = band.shape[0], self._rows.shape[1]
        parts = band[:, : blocks * self._block_columns].reshape(n * blocks, -1)
        means = parts.astype(np.float32) @ (self._mean * scale).astype(np.float32)
        self._rows[:, :, self._y : self._y + n] = means.reshape(n, blocks, 3).T
        y = self._y
        while y < self._y + n and y // self._block_rows < self._columns.shape[1]:
            end = min(self._y + n, (y // self._block_rows + 1) * self._block_rows)
            # Below 2^32 in blocks of 16 bits up to 65,536 rows.
            self._sum += band[y - self._y : end - self._y].sum(axis=0, dtype=np.uint32)
            if end % self._block_rows == 0:
                mixed = self._sum @ (_OF_RGB * (scale / self._block_rows))
                self._columns[:, y // self._block_rows] = mixed.T
                self._sum[:] = 0
            y = end
        self._y += n

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """C of the columns, (3, blocks, width), and of the rows, (3, blocks, height), in
        levels of 255.
        """
        return self._columns, self._rows


def find_seams(means: NDArray[np.float32], axis: Axis, tile_px: Sequence[int] = ()) -> list[Seam]:
    """The strongest lines of every period, at every scale.

    Args:
        means: C of all channels, (3, blocks, lines), in levels.
        axis: What the lines are.
        tile_px: Periods to try besides.

    Returns:
        Empty if the side is shorter than `LEAST_PX`.
    """
    if means.shape[2] < LEAST_PX or means.shape[1] == 0:
        return []
    long = _LONGER if means.shape[1] >= 4 * _LONGER else 1
    tried: list[tuple[Channel, int]] = [
        ("Y", 1),
        *((channel, long) for channel in CHANNELS if channel != "Y" or long > 1),
    ]
    return [
        replace(seam, channel=channel)
        for channel, blocks in tried
        for seam in _at_scales(_merged(means[CHANNELS.index(channel)], blocks), axis, tile_px)
    ]


def strongest(seams: Sequence[Seam]) -> Seam | None:
    """The one to name, None of none."""
    most = max((seam.z for seam in seams), default=0.0)
    near = [seam for seam in seams if seam.z >= _ECHO * most]
    return max(near, key=lambda seam: (seam.lines, seam.z)) if near else None


def profile(means: NDArray[np.float32], scale: int = 1) -> Floats:
    """P: how much each line stands out, 1 for most.

    Args:
        means: C, (blocks, lines), in levels.
        scale: Pixels that one of these lines is the mean of.

    Returns:
        (lines,), NaN at both ends, where neighbours are missing.
    """
    jumps = _jumps(means)
    height = np.abs(jumps)
    t: Floats = np.minimum(height / (_around(height) + _FLOOR), _CLIP).mean(
        axis=0, dtype=np.float64
    )
    edge = _AROUND + 2
    t[:edge] = t[-edge:] = np.nan  # neighbours are missing there
    # Averaged by 2, what is periodic in 16 px is so in 8 lines, and what is in 3 px, in 3 lines.
    for step in (max(1, _FINE_PX // scale), _ENLARGED):
        for remainder in range(step):
            same = t[remainder::step]
            middle = np.nanmedian(same) if np.isfinite(same).any() else 0.0
            t[remainder::step] = same / middle if middle > 0 else 1.0
    t[:edge] = t[-edge:] = np.nan
    return t


def _at_scales(means: NDArray[np.float32], axis: Axis, tile_px: Sequence[int]) -> Iterator[Seam]:
    scale = 1
    while scale <= _MOST_SCALE and means.shape[1] >= LEAST_PX // 2:
        yield from _of_periods(profile(means, scale), axis, scale, tile_px)
        means, scale = _halved(means), scale * 2


def _of_periods(
    stands_out: Floats, axis: Axis, scale: int, tile_px: Sequence[int]
) -> Iterator[Seam]:
    """For each period the offset of the largest z, at one scale."""
    single = _spread(stands_out)
    for period in _periods(stands_out, scale, tile_px):
        ratio, lines = _folded(stands_out, period)
        spread = np.maximum(_spread(ratio), single / np.sqrt(np.maximum(lines, 1)))
        z = np.where(lines >= 2, (ratio - np.nanmedian(ratio)) / spread, -np.inf)
        offset = int(z.argmax())
        if lines[offset] >= 2:
            yield Seam(
                axis, period * scale, (offset or period) * scale, float(ratio[offset]),
                float(z[offset]), scale, int(lines[offset]),
            )  # fmt: skip


def _folded(stands_out: Floats, period: int) -> tuple[Floats, NDArray[np.int64]]:
    """For each offset the mean of P without its largest quarter, and how many lines there are."""
    count = -(-len(stands_out) // period)
    padded = np.full(count * period, np.nan)
    padded[: len(stands_out)] = stands_out
    lines = np.sort(padded.reshape(count, period), axis=0)  # NaN last
    held = np.isfinite(lines).sum(axis=0)
    kept = held - -(-held // 4)
    inside = np.arange(count)[:, None] < kept
    total = np.where(inside, lines, 0.0).sum(axis=0)
    return np.where(kept > 0, total / np.maximum(kept, 1), np.nan), held


def _periods(stands_out: Floats, scale: int, tile_px: Sequence[int]) -> list[int]:
    """In lines of this scale."""
    most = min(_MOST_PERIOD_PX // scale, len(stands_out) // 2)
    least = max(_LEAST_PERIOD_PX // scale, _LEAST_PERIOD_LINES)
    step = max(1, _PERIOD_STEP_PX // scale)
    found = set(range(-(-least // step) * step, most + 1, step))
    found |= {px // scale for px in tile_px if px % scale == 0}
    strongest = np.argsort(np.nan_to_num(stands_out))[-_STRONGEST:]
    found |= set(np.abs(strongest[:, None] - strongest).ravel().tolist())
    return sorted(period for period in found if least <= period <= most)


def _spread(values: Floats) -> float:
    middle = np.nanmedian(values)
    return max(float(1.4826 * np.nanmedian(np.abs(values - middle))), 1e-6)


def _jumps(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """J; 0 where a neighbour is missing."""
    made = np.zeros_like(means)
    d = np.diff(means, axis=1)  # d[:, i] lies between the columns i and i + 1
    made[:, 2:-1] = d[:, 1:-1] - (d[:, :-2] + d[:, 2:]) / 2
    return made


def _around(height: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of the neighbours at distances 2 to 8."""
    total = np.zeros_like(height)
    for distance in range(2, _AROUND + 1):
        total[:, distance:] += height[:, :-distance]
        total[:, :-distance] += height[:, distance:]
    total /= 2 * (_AROUND - 1)
    return total


def _halved(means: NDArray[np.float32]) -> NDArray[np.float32]:
    even = means.shape[1] // 2 * 2
    made: NDArray[np.float32] = (means[:, 0:even:2] + means[:, 1:even:2]) / np.float32(2)
    return made


def _merged(means: NDArray[np.float32], blocks: int) -> NDArray[np.float32]:
    count = means.shape[0] // blocks
    merged = means[: count * blocks].reshape(count, blocks, -1)
    made: NDArray[np.float32] = merged.mean(axis=1, dtype=np.float32)
    return made


def _block_px(side_px: int) -> int:
    """Length of a block; the rest of a side at its end belongs to none."""
    return min(side_px, max(_LEAST_BLOCK_PX, -(-side_px // MOST_BLOCKS)))
