"""Pictures for the tests of inspections: rendered ones, and the same with planted faults."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hirescli.training.scenes import render


@lru_cache(maxsize=8)
def rendered(family: str, size_px: int, seed: int = 3) -> NDArray[np.uint8]:
    """A rendered picture, (size_px, size_px, 3)."""
    return render(seed=seed, size_px=size_px, family=family).picture


def grain(height: int, width: int, beta: float = 1.5, seed: int = 0) -> NDArray[np.float32]:
    """Luma in levels with the spectrum of photographs: amplitude 1 / frequency^beta."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    made = np.fft.irfft2(
        np.fft.rfft2(rng.normal(size=(height, width))) / frequency**beta, (height, width)
    )
    return (128 + 30 * (made - made.mean()) / made.std()).astype(np.float32)


def tiled(
    picture: NDArray[Any], *, period: int, offset: tuple[int, int], jump: float, ramp: int = 1
) -> NDArray[np.uint8]:
    """As a tiled decoder leaves a picture: each tile brighter or darker by half a jump.

    Args:
        picture: (height, width, 3).
        period: Side of a tile in px.
        offset: Of the first column and row that begin a tile.
        jump: Mean size of the jumps, in levels.
        ramp: Over so many px tiles are blended; 1: not at all.
    """
    rng = np.random.default_rng(5)
    (iy, wy), (ix, wx) = (
        _places(side, period, first, ramp)
        for side, first in zip(picture.shape[:2], offset[::-1], strict=True)
    )
    levels = rng.choice([-0.5, 0.5], (iy.max() + 1, ix.max() + 1)) * jump
    across = levels[:, ix] * wx + levels[:, np.maximum(ix - 1, 0)] * (1 - wx)
    both = across[iy] * wy[:, None] + across[np.maximum(iy - 1, 0)] * (1 - wy[:, None])
    # What a decoder gives is no whole number before it is rounded.
    between = picture + rng.uniform(-0.5, 0.5, picture.shape)
    return np.clip(np.rint(between + both[:, :, None]), 0, 255).astype(np.uint8)


def _places(side: int, period: int, offset: int, ramp: int) -> tuple[Any, Any]:
    place = np.arange(side) - offset
    weight = np.clip((place % period + 0.5) / ramp, 0, 1) if ramp > 1 else np.ones(side)
    return place // period + 1, weight
