"""Periodic height maps: alpine ridges, dunes, canyons and hills, with slopes and shadows.

Heights and distances share one unit: the map's period. Maps are (512, 512), rows go away from
the eye (z), columns to the right (x).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hirescli.training.scenes.noise import TILE_PX, Field, periodic, smoothstep, tile


@dataclass(frozen=True)
class Relief:
    """A height map with its slopes and the height of the sun's shadow above each place."""

    height: Field
    slope_x: Field
    slope_z: Field
    shadow: Field
    hollow: Field


def _rolled(rng: np.random.Generator, field: Field) -> Field:
    """Shift a periodic field by a random amount, and perhaps mirror or turn it."""
    down, right = (int(v) for v in rng.integers(0, TILE_PX, 2))
    if rng.random() < 0.5:
        field = field.T
    return np.roll(field, (down, right), axis=(0, 1))


def _band(rng: np.random.Generator, cycles: float) -> Field:
    """Pick a smooth fixed field of about `cycles` waves per period."""
    return _rolled(rng, tile(int(rng.integers(0, 4)), 3.0, cycles, cycles * 1.6))


def alpine(rng: np.random.Generator) -> Field:
    """Make ridged mountains: sharp where high, smooth in the valleys; about 0..0.25."""
    macro = periodic(rng, TILE_PX, TILE_PX, beta=3.2, low=2.5, high=9)
    total = np.zeros_like(macro)
    weight = np.ones_like(macro)
    for octave, cycles in enumerate((3.5, 7.0, 14.0, 28.0, 56.0)):
        ridge = np.clip(1 - np.abs(_band(rng, cycles)) * np.float32(0.62), 0, 1)
        ridge *= np.sqrt(ridge)
        total += ridge * weight * np.float32(0.5**octave)
        weight = np.clip(weight * ridge * np.float32(1.6) + np.float32(0.08), 0, 1)
    rough = _rolled(rng, tile(int(rng.integers(0, 4)), 2.0, 20.0, 240.0))
    shape = total * np.float32(0.55) + 0.28 * smoothstep(-1.2, 1.8, macro) * (0.4 + total)
    shape += rough * np.float32(0.012) * (0.3 + total)
    return (shape * np.float32(0.16)).astype(np.float32)


def dunes(rng: np.random.Generator) -> Field:
    """Make dunes: a long windward slope, a sharp crest, a steep lee; about 0..0.06."""
    z = (np.arange(TILE_PX, dtype=np.float32) / TILE_PX)[:, None]
    x = z.T
    total = np.zeros((TILE_PX, TILE_PX), np.float32)
    turn = int(rng.integers(-3, 4))
    for count, size in ((4, 1.0), (9, 0.4)):
        bend = periodic(rng, TILE_PX, TILE_PX, beta=3.4, low=2.0, high=count * 1.6)
        phase = count * z + turn * x + bend * np.float32(0.42)
        part = np.mod(phase, 1.0)
        rise, fall = part / np.float32(0.7), (1 - part) / np.float32(0.3)
        crest = np.minimum(rise, fall)
        crest = crest * crest * (1.6 - 0.6 * crest)
        height = smoothstep(-1.3, 1.5, periodic(rng, TILE_PX, TILE_PX, beta=3.4, low=2.0, high=7))
        total += crest * (0.15 + height) * np.float32(size)
    swell = periodic(rng, TILE_PX, TILE_PX, beta=3.4, low=2.0, high=6)
    return ((total * 0.062 + swell * 0.006) + 0.01).astype(np.float32)


def canyon(rng: np.random.Generator) -> Field:
    """Make table mountains with stepped cliffs and cut gorges; about 0..0.16."""
    macro = periodic(rng, TILE_PX, TILE_PX, beta=2.3, low=3.0, high=60)
    rough = _rolled(rng, tile(int(rng.integers(0, 4)), 1.7, 8.0, 200.0))
    level = macro + 0.10 * rough
    steps = np.zeros_like(level)
    for place, rise in ((-0.5, 0.10), (0.05, 0.22), (0.3, 0.16), (0.75, 0.30), (1.15, 0.22)):
        steps += np.float32(rise) * smoothstep(place, place + 0.10, level)
    slopes = smoothstep(-1.5, 2.0, level) * 0.35
    height: Field = ((steps + slopes) * 0.125 + rough * np.float32(0.0008)).astype(np.float32)
    return height


def hills(rng: np.random.Generator) -> Field:
    """Make soft rolling hills; about 0..0.1."""
    base = periodic(rng, TILE_PX, TILE_PX, beta=3.0, low=3.5, high=30)
    fold = 1 - np.abs(_band(rng, 7.0)) * np.float32(0.6)
    return (0.045 + base * np.float32(0.018) + fold * np.float32(0.012)).astype(np.float32)


def illuminate(height: Field, sun: tuple[float, float, float]) -> Relief:
    """Add slopes, cast shadows and hollows to a height map.

    `sun` points to the sun: (x, up, z). The shadow map holds the height that the sun's ray
    over the neighbours has at each place: a point below it lies in shade.
    """
    scale = np.float32(TILE_PX / 2)
    slope_x = (np.roll(height, -1, 1) - np.roll(height, 1, 1)) * scale
    slope_z = (np.roll(height, -1, 0) - np.roll(height, 1, 0)) * scale
    flat = float(np.hypot(sun[0], sun[2])) + 1e-6
    drop = sun[1] / flat / TILE_PX
    shadow = np.full_like(height, -1.0)
    distance = 2.0
    for _ in range(15):
        dx = round(-sun[0] / flat * distance)
        dz = round(-sun[2] / flat * distance)
        np.maximum(
            shadow, np.roll(height, (dz, dx), (0, 1)) - np.float32(drop * distance), out=shadow
        )
        distance *= 1.33
    around = sum(
        np.roll(height, (dz, dx), (0, 1)) for dz, dx in ((0, 14), (14, 0), (0, -14), (-14, 0))
    )
    hollow = (around * np.float32(0.25) - height).astype(np.float32)
    return Relief(height, slope_x, slope_z, shadow, hollow)


@lru_cache(maxsize=8)
def grain(index: int) -> tuple[Field, Field, Field]:
    """Give a fixed rough tile for close relief: heights and slopes along x and z, unit-sized."""
    field = tile(index, 1.9, 5.0, 150.0)
    scale = np.float32(TILE_PX / 2)
    along_x = (np.roll(field, -1, 1) - np.roll(field, 1, 1)) * scale
    along_z = (np.roll(field, -1, 0) - np.roll(field, 1, 0)) * scale
    return field, along_x, along_z
