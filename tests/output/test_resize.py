from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from hirescli.output.resize import ArrayRows, Kernel, resized_rows
from hirescli.output.spool import Spool

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "lanczos3": Image.Resampling.LANCZOS}


def noise(width_px: int, height_px: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).random((height_px, width_px, 3), dtype=np.float32)


def whole(
    pixels: NDArray[np.float32], size: tuple[int, int], kernel: Kernel
) -> NDArray[np.float32]:
    """Pillow on whole float channels: another program's arithmetic, in double precision."""
    channels = [
        np.asarray(Image.fromarray(pixels[..., c]).resize(size, PILLOW[kernel])) for c in range(3)
    ]
    return np.clip(np.stack(channels, axis=-1), 0, 1)


def banded(
    pixels: NDArray[np.float32], size: tuple[int, int], kernel: Kernel, rows: int
) -> NDArray[np.float32]:
    bands = resized_rows(
        ArrayRows(pixels), width_px=size[0], height_px=size[1], rows=rows, kernel=kernel
    )
    return np.concatenate(list(bands))


sides = st.integers(1, 24)
ratios = st.fractions(1, 3, max_denominator=7)


@settings(max_examples=60, deadline=None)
@given(sides, sides, ratios, ratios, st.integers(1, 80), st.sampled_from(["bicubic", "lanczos3"]))
def test_any_band_height_gives_the_same_bits_as_one_band(
    width: int, height: int, ratio_x: float, ratio_y: float, rows: int, kernel: Kernel
) -> None:
    pixels, size = noise(width, height), (int(width * ratio_x), int(height * ratio_y))
    one_band = banded(pixels, size, kernel, size[1])
    assert one_band.shape == (size[1], size[0], 3)
    assert np.array_equal(banded(pixels, size, kernel, rows), one_band)


@settings(max_examples=40, deadline=None)
@given(sides, sides, ratios, ratios, st.sampled_from(["bicubic", "lanczos3"]))
def test_it_equals_pillow_up_to_rounding(
    width: int, height: int, ratio_x: float, ratio_y: float, kernel: Kernel
) -> None:
    pixels, size = noise(width, height), (int(width * ratio_x), int(height * ratio_y))
    difference = np.abs(banded(pixels, size, kernel, 5) - whole(pixels, size, kernel))
    assert difference.max() < 1e-6


def test_the_same_size_changes_nothing() -> None:
    pixels = noise(17, 23)
    assert np.array_equal(banded(pixels, (17, 23), "bicubic", 4), pixels)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_spool_is_read_row_by_row(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    levels = np.random.default_rng(5).integers(0, top, (40, 30, 3), dtype=f"u{bits // 8}")
    with Spool.create(tmp_path / "s", width_px=30, height_px=40, bits=bits) as spool:  # type: ignore[arg-type]
        spool.write_rows(0, levels)
        bands = list(resized_rows(spool, width_px=60, height_px=80, rows=16))
    expected = whole((levels / top).astype(np.float32), (60, 80), "bicubic")
    assert [len(band) for band in bands] == [16] * 5
    assert np.abs(np.concatenate(bands) - expected).max() < 1e-6


def test_each_source_row_is_read_once_and_few_are_held() -> None:
    class Counting(ArrayRows):
        def __init__(self, pixels: NDArray[np.float32]) -> None:
            super().__init__(pixels)
            self.read: list[int] = []

        def read_rows(self, y0: int, n: int) -> NDArray[np.float32]:
            self.read += range(y0, y0 + n)
            assert n <= 8
            return super().read_rows(y0, n)

    source = Counting(noise(8, 200))
    for _ in resized_rows(source, width_px=16, height_px=400, rows=8):
        pass
    assert source.read == list(range(200))
