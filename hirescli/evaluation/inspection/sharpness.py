r"""Sharpness: what each octave of a picture holds beyond a plain enlargement.

Level 0 is the picture, each further level the one before with 2x2 pixels averaged. For level P,
U(P) is P with 2x2 pixels averaged and enlarged again twofold by a Lanczos filter of 6 taps: P as
a plain upscaler would give it. Then, with means over all pixels but a margin of `MARGIN_PX`:

- octave energy: E(P) = mean((P - U(P))^2), in levels of 255 squared; in dB, 10 log10(E), where
  0 dB is a detail of one level root mean square;
- above plain: 10 log10(E(P) / E(U(P))): 0 dB says that the level is as smooth as an enlargement
  of the level below.

A level holds real detail if it lies `REAL_DB` above plain, is above what rounding to 8 bits alone
gives (`ROUNDING_DB`), and its octave energy is not more than `FALL_DB` below the largest of the
coarser levels less 4 dB an octave: pictures fall by 1 to 4 dB an octave, what is enlarged by more.
The effective size is that of the finest level that holds real detail together with the next
coarser one, to an octave. Grain, noise and what JPEG leaves count as detail: no measure of energy
can tell them apart. The edges of repeated pixels would, too; `repeats` finds those.

References:
    The differences are those of a Laplacian pyramid: Burt and Adelson, "The Laplacian Pyramid as
    a Compact Image Code", 1983.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
MARGIN_PX = 16  # U(U(P)) reads 12 px to each side; even, so that pairs stay pairs
LEAST_PX = 64
REAL_DB = 4.0
FALL_DB = 8.0
ROUNDING_DB = -12.0
_SLOPE_DB = 4.0  # an octave
_STRIP_ROWS = 64
_FLOOR = 1e-4  # squared levels: what rounding to 16 bits leaves, so that no logarithm is of 0


@dataclass(frozen=True)
class Level:
    """One level of a picture.

    Attributes:
        width_px, height_px: Its size.
        octave_db: Energy of its finest octave, 0 dB for one level of 255 root mean square.
        above_plain_db: The same, beside that of a plain enlargement.
    """

    width_px: int
    height_px: int
    octave_db: float
    above_plain_db: float


class Pyramid:
    """Energies of all levels, folded from bands of luma in levels of 255.

    Args:
        width_px, height_px: Of the picture.
    """

    def __init__(self, width_px: int, height_px: int) -> None:
        self._energies: list[_Energy] = []
        while min(width_px, height_px) >= LEAST_PX:
            self._energies.append(_Energy(width_px, height_px))
            width_px, height_px = width_px // 2, height_px // 2

    def fold(self, luma: NDArray[np.float32]) -> None:
        """Take the next rows, (n, width)."""
        for energy in self._energies:
            luma = energy.fold(luma)

    def finish(self) -> tuple[Level, ...]:
        """The levels, the finest first; none if the picture is below `LEAST_PX`."""
        return tuple(energy.level() for energy in self._energies)


def effective_scale(levels: Sequence[Level], repeats: int = 1) -> float | None:
    """The share of the full side down to which there is real detail.

    Args:
        levels: Of the picture, the finest first.
        repeats: How often each pixel is repeated; the edges of such squares are no detail.

    Returns:
        1 if the finest level has it, 0.5 if the second is the first that has, and so on, at most
        1 / `repeats`; None if no level has.
    """
    real = [_is_real(level, levels[i + 1 :]) for i, level in enumerate(levels)]
    for index in range(len(real)):
        if all(real[index : index + 2]):
            return min(2.0**-index, 1 / repeats)
    return None


def _is_real(level: Level, coarser: Sequence[Level]) -> bool:
    due = (each.octave_db - _SLOPE_DB * (i + 1) for i, each in enumerate(coarser))
    least = max(max(due, default=level.octave_db) - FALL_DB, ROUNDING_DB)
    return level.above_plain_db >= REAL_DB and level.octave_db >= least


def residual(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """P - U(P), without 6 px at each edge; both sides even and at least 14 px."""
    return picture[6:-6, 6:-6] - enlarged(halved(picture))


def halved(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2x2 pixels; an odd last row or column is left out."""
    height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    rows = picture[0:height:2, :width] + picture[1:height:2, :width]
    made: NDArray[np.float32] = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
    return made


def enlarged(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Twice the size by Lanczos, without what 3 px at each edge would become."""
    return _twofold(_twofold(picture, axis=1), axis=0)


def _twofold(picture: NDArray[np.float32], *, axis: int) -> NDArray[np.float32]:
    """An axis of n samples becomes one of 2 (n - 6)."""
    n = picture.shape[axis] - 6
    shape = list(picture.shape)
    shape[axis] = 2 * n
    made = np.empty(shape, dtype=np.float32)
    # Sample centres: the new 2 i lies a quarter of a sample before i, 2 i + 1 a quarter behind.
    for phase, weights in ((0, _WEIGHTS), (1, _WEIGHTS[::-1])):
        part = _cut(picture, axis, phase, n) * weights[0]
        for tap in range(1, 6):
            part += _cut(picture, axis, phase + tap, n) * weights[tap]
        _cut(made, axis, phase, None, step=2)[...] = part
    return made


def _cut(
    picture: NDArray[np.float32], axis: int, first: int, n: int | None, step: int = 1
) -> NDArray[np.float32]:
    """A view of `n` samples of an axis from `first` on; None: to the end."""
    along = slice(first, None if n is None else first + n, step)
    return picture[along] if axis == 0 else picture[:, along]


def _lanczos_weights() -> NDArray[np.float32]:
    """Of the rows i - 3 to i + 2 for what lies a quarter above i."""
    distance = np.arange(-3, 3) + 0.25
    weight = np.sinc(distance) * np.sinc(distance / 3)
    made: NDArray[np.float32] = (weight / weight.sum()).astype(np.float32)
    return made


_WEIGHTS = _lanczos_weights()


class _Energy:
    """E(P) and E(U(P)) of one level, over strips of rows with what they read above and below."""

    def __init__(self, width_px: int, height_px: int) -> None:
        self._size = width_px, height_px
        self._even_px = width_px // 2 * 2
        self._kept = np.empty((0, width_px), dtype=np.float32)
        self._odd = np.empty((0, width_px), dtype=np.float32)
        self._sums = np.zeros(2)
        self._count = 0

    def fold(self, luma: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take rows; the rows of the next level that are complete with them."""
        self._kept = np.concatenate([self._kept, luma])
        whole = _STRIP_ROWS + 2 * MARGIN_PX
        while self._kept.shape[0] >= whole:
            self._add(self._kept[:whole])
            self._kept = self._kept[_STRIP_ROWS:]
        paired = np.concatenate([self._odd, luma])
        self._odd = paired[paired.shape[0] // 2 * 2 :]
        return halved(paired)

    def level(self) -> Level:
        """All rows are there: the last strip, and the result."""
        rest = self._kept[: self._kept.shape[0] // 2 * 2]
        if rest.shape[0] > 2 * MARGIN_PX:
            self._add(rest)
        real, plain = np.maximum(self._sums / max(self._count, 1), _FLOOR)
        return Level(
            *self._size,
            octave_db=10 * math.log10(real),
            above_plain_db=10 * math.log10(real / plain),
        )

    def _add(self, strip: NDArray[np.float32]) -> None:
        strip = strip[:, : self._even_px]
        plain = enlarged(halved(strip))  # without 6 px at each edge
        real = _inner(strip, MARGIN_PX) - _inner(plain, MARGIN_PX - 6)
        again = _inner(residual(plain), MARGIN_PX - 12)
        self._sums += [_squares(real), _squares(again)]
        self._count += real.size


def _inner(picture: NDArray[np.float32], margin: int) -> NDArray[np.float32]:
    return picture[margin:-margin, margin:-margin]


def _squares(values: NDArray[np.float32]) -> float:
    return float(np.einsum("ij,ij->i", values, values).sum(dtype=np.float64))
