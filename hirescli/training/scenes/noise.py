"""Band-limited fractal noise: fields made in the frequency domain, and a bank of periodic tiles.

Shapes: fields are (rows, columns) float32 with zero mean and unit deviation unless said otherwise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import fft

# float32 in practice; numpy's type stubs widen the results of mixed arithmetic.
Field = npt.NDArray[np.floating[Any]]
Picture = npt.NDArray[np.floating[Any]]  # (rows, columns, 3), linear light

TILE_PX = 512
TILES = 12


@lru_cache(maxsize=96)
def _amplitude(
    rows: int, columns: int, beta: float, low: float, high: float, stretch: float
) -> Field:
    """Amplitude per frequency of an rfft2 grid; `low` and `high` in cycles per grid."""
    fy = fft.fftfreq(rows, 1.0 / rows).astype(np.float32)[:, None]
    fx = fft.rfftfreq(columns, 1.0 / columns).astype(np.float32)[None, :]
    squared = (fy / stretch) ** 2 + (fx * stretch) ** 2
    amplitude = (squared + np.float32(low * low)) ** np.float32(-beta / 2)
    amplitude *= np.exp(-squared / np.float32(high * high))
    amplitude[0, 0] = 0.0
    shaped: Field = amplitude.astype(np.float32)
    return shaped


def periodic(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    beta: float,
    low: float,
    high: float | None = None,
    stretch: float = 1.0,
) -> Field:
    """Make a periodic Gaussian field whose amplitude falls as frequency to the minus `beta`.

    Args:
        rng: source of the random phases.
        rows: height in samples.
        columns: width in samples.
        beta: fall-off of the amplitude; 1 is rough, 2 is a natural relief, 3 is smooth.
        low: cycles per grid below which the spectrum is flat.
        high: cycles per grid at which the spectrum has fallen to 1/e (default: no limit but
            the grid's own).
        stretch: above 1, features are wider than tall.
    """
    limit = high if high is not None else 0.6 * min(rows, columns)
    amplitude = _amplitude(rows, columns, beta, low, limit, stretch)
    white = rng.standard_normal((2, *amplitude.shape), dtype=np.float32)
    spectrum = (white[0] + 1j * white[1]) * amplitude
    field = fft.irfft2(spectrum, s=(rows, columns), workers=1).astype(np.float32)
    normal: Field = field / np.float32(field.std() + 1e-9)
    return normal


def fractal(
    rng: np.random.Generator,
    px: int,
    *,
    beta: float,
    cycles: float,
    high: float | None = None,
    stretch: float = 1.0,
) -> Field:
    """Make a (px, px) field without matching borders; frequencies in cycles per picture.

    A periodic field a quarter larger is cropped, and a random slope stands for the
    frequencies below one cycle per picture.
    """
    grid = fft.next_fast_len(int(px * 1.25), real=True)
    ratio = grid / px
    field = periodic(
        rng,
        grid,
        grid,
        beta=beta,
        low=max(cycles, 0.4) * ratio,
        high=None if high is None else high * ratio,
        stretch=stretch,
    )[:px, :px]
    slope = rng.normal(0.0, max(0.0, 1.2 - cycles), 2).astype(np.float32)
    if cycles < 1.2:
        ramp = np.linspace(-1.0, 1.0, px, dtype=np.float32)
        field = field + slope[0] * ramp[None, :] + slope[1] * ramp[:, None]
    field = field - field.mean()
    normal: Field = field / np.float32(field.std() + 1e-9)
    return normal


@lru_cache(maxsize=128)
def tile(index: int, beta: float = 1.0, low: float = 6.0, high: float = 90.0) -> Field:
    """Give one of `TILES` fixed periodic (512, 512) fields of a band of frequencies."""
    rng = np.random.default_rng([7919, index])
    return periodic(rng, TILE_PX, TILE_PX, beta=beta, low=low, high=high)


def sample(field: Field, x: Field, y: Field) -> Field:
    """Look a periodic field up at `x`, `y` (in periods, any shape, wrapping), bilinearly."""
    # A third of scipy's map_coordinates in time; sides are powers of two, so & wraps.
    rows, columns = field.shape
    u, v = x * np.float32(columns), y * np.float32(rows)
    u, v = np.broadcast_arrays(u, v)
    left, upper = np.floor(u), np.floor(v)
    u, v = u - left, v - upper
    i0 = left.astype(np.int64) & (columns - 1)
    j0 = upper.astype(np.int64) & (rows - 1)
    i1 = (i0 + 1) & (columns - 1)
    j1 = ((j0 + 1) & (rows - 1)) * columns
    j0 *= columns
    flat = field.ravel()
    top: Field = flat.take(j0 + i0)
    bottom: Field = flat.take(j1 + i0)
    top += (flat.take(j0 + i1) - top) * u
    bottom += (flat.take(j1 + i1) - bottom) * u
    top += (bottom - top) * v
    return top


def warp(field: Field, dx: Field, dy: Field) -> Field:
    """Shift a field's lookups by `dx`, `dy` (in picture widths), mirroring at the border."""
    rows, columns = field.shape
    x = np.arange(columns, dtype=np.float32)[None, :] + dx * np.float32(columns)
    y = np.arange(rows, dtype=np.float32)[:, None] + dy * np.float32(columns)
    x = np.clip(columns - 1 - np.abs(columns - 1 - np.abs(x)), 0, columns - 1.001)
    y = np.clip(rows - 1 - np.abs(rows - 1 - np.abs(y)), 0, rows - 1.001)
    i, j = x.astype(np.int64), y.astype(np.int64)
    u, v = (x - i).astype(np.float32), (y - j).astype(np.float32)
    flat, start = field.ravel(), j * columns + i
    top: Field = flat.take(start)
    bottom: Field = flat.take(start + columns)
    top += (flat.take(start + 1) - top) * u
    bottom += (flat.take(start + columns + 1) - bottom) * u
    top += (bottom - top) * v
    return top


def smoothstep(low: float | Field, high: float | Field, x: Field) -> Field:
    """Rise from 0 at `low` to 1 at `high` with flat ends."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return t * t * (3 - 2 * t)
