"""Pictures, spools and recipes that the tests of the output share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hirescli.output.spool import Spool
from hirescli.recipe import Recipe


def picture(width_px: int, height_px: int) -> NDArray[np.uint8]:
    """Smooth colours with grain: every pixel differs, and JPEG does not fail on it."""
    rng = np.random.default_rng(7)
    x = np.linspace(0, 1, width_px)[None, :, None]
    y = np.linspace(0, 1, height_px)[:, None, None]
    waves = 128 + 60 * np.sin(6 * x + np.array([0, 1, 2])) + 50 * np.cos(5 * y)
    return (waves + rng.integers(-4, 5, waves.shape)).clip(0, 255).astype(np.uint8)


def deep_picture(width_px: int, height_px: int) -> NDArray[np.uint16]:
    """The same in 16 bits, with low bytes that no picture of 8 bits has."""
    low = np.random.default_rng(8).integers(-120, 121, (height_px, width_px, 3))
    return (picture(width_px, height_px).astype(int) * 257 + low).clip(0, 65535).astype(np.uint16)


def write_spool(path: Path, pixels: NDArray[Any]) -> Path:
    height_px, width_px, _ = pixels.shape
    bits = pixels.itemsize * 8
    with Spool.create(path, width_px=width_px, height_px=height_px, bits=bits) as spool:
        for y0 in range(0, height_px, 100):
            spool.write_rows(y0, pixels[y0 : y0 + 100])
        spool.flush()
    return path


def recipe(width_px: int, height_px: int, **choices: Any) -> Recipe:
    wanted = {"prompt": "a red dune", "size": f"{width_px}x{height_px}", "steps": 12} | choices
    return Recipe.from_fragments(wanted)
