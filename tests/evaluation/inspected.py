"""Pictures for the tests of inspections."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hirescli.training.scenes import render


@lru_cache(maxsize=32)
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
