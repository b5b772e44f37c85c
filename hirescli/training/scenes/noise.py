"""Band-limited fractal noise: fields made in the frequency domain, and a bank of periodic tiles.

Shapes: fields are (rows, columns) float32 with zero mean and unit deviation unless said otherwise.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Field = npt.NDArray[np.float32]
Picture = npt.NDArray[np.float32]  # (rows, columns, 3), linear light

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
    return amplitude.astype(np.float32)


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
    return field / np.float32(field.std() + 1e-9)


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
    return field / np.float32(field.std() + 1e-9)


@lru_cache(maxsize=64)
def tile(index: int, beta: float = 1.0, low: float = 6.0, high: float = 90.0) -> Field:
    """Give one of `TILES` fixed periodic (512, 512) fields of a band of frequencies."""
    rng = np.random.default_rng([7919, index])
    return periodic(rng, TILE_PX, TILE_PX, beta=beta, low=low, high=high)


def sample(field: Field, x: Field, y: Field) -> Field:
    """Look a periodic field up at `x`, `y` (in periods, any shape, wrapping), bilinearly."""
    rows, columns = field.shape
    where = np.stack([y * np.float32(rows), x * np.float32(columns)])
    return ndimage.map_coordinates(field, where, order=1, mode="grid-wrap", output=np.float32)


def warp(field: Field, dx: Field, dy: Field) -> Field:
    """Shift a field's lookups by `dx`, `dy` (in picture widths), mirroring at the border."""
    px = field.shape[0]
    rows, columns = np.mgrid[0 : field.shape[0], 0 : field.shape[1]].astype(np.float32)
    where = np.stack([rows + dy * px, columns + dx * px])
    return ndimage.map_coordinates(field, where, order=1, mode="mirror", output=np.float32)


def smoothstep(low: float | Field, high: float | Field, x: Field) -> Field:
    """Rise from 0 at `low` to 1 at `high` with flat ends."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return t * t * (3 - 2 * t)
