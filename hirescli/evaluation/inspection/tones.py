"""From stored levels to luma, linear light and CIE Lab.

Shapes: any leading axes, the last one is red, green, blue.

References:
    IEC 61966-2-1 (sRGB); ITU-R BT.709 (weights of luma); CIE 15 (Lab, D65).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # of BT.709
# Linear sRGB to XYZ, each row divided by the white point's component (D65).
_XYZ_PER_WHITE = np.array(
    [
        [0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883],
    ]
)


def luma(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Coded brightness in levels of 8 bits, 0 to 255.

    Args:
        rows: (n, width, 3), uint8 or uint16.

    Returns:
        (n, width), float32.
    """
    scale = np.float32(255 / np.iinfo(rows.dtype).max)
    flat = rows.reshape(-1, 3).astype(np.float32)
    made: NDArray[np.float32] = (flat @ (LUMA * scale)).reshape(rows.shape[:2])
    return made


def linear(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Linear light, 0 to 1, of uint8 or uint16 levels."""
    return np.take(_decoded(str(rows.dtype)), rows)


def coded(light: Floats) -> Floats:
    """sRGB-coded values, 0 to 1, of linear light."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def lab(light: Floats) -> Floats:
    """CIE Lab (L 0 to 100, a and b about -100 to 100) of linear sRGB."""
    t = light @ _XYZ_PER_WHITE.T
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@lru_cache(maxsize=2)
def _decoded(dtype: str) -> NDArray[np.float32]:
    top = np.iinfo(dtype).max
    level = np.arange(top + 1) / top
    light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)
