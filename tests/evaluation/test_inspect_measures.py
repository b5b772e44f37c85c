"""Sharpness, repetition and colour drift: against plain computations, and with planted faults."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hirescli.evaluation.inspection import drift, repetition, sharpness, tones
from hirescli.evaluation.inspection.reduced import Reduced
from hirescli.evaluation.inspection.repeats import Repeats
from hirescli.evaluation.inspection.verdicts import CELL_LOOK, QUARTER_BAD
from tests.evaluation.inspected import grain, rendered

# Sharpness


def levels(luma: NDArray[Any], rows: int = 64) -> tuple[sharpness.Level, ...]:
    pyramid = sharpness.Pyramid(luma.shape[1], luma.shape[0])
    for y in range(0, luma.shape[0], rows):
        pyramid.fold(luma[y : y + rows].astype(np.float32))
    return pyramid.finish()


def enlarged(picture: NDArray[Any], size: tuple[int, int], kernel: Any) -> NDArray[Any]:
    return np.asarray(Image.fromarray(picture.astype(np.float32)).resize(size, kernel))


def test_the_enlargement_is_lanczos() -> None:
    small = grain(40, 56)
    by_pillow = enlarged(small, (112, 80), Image.Resampling.LANCZOS)
    np.testing.assert_allclose(sharpness.enlarged(small), by_pillow[6:-6, 6:-6], atol=2e-3)


@pytest.mark.parametrize(("height", "width"), [(200, 320), (201, 323), (64, 64), (97, 130)])
@pytest.mark.parametrize("rows", [1, 48, 500])
def test_energies_are_those_of_the_whole_picture(height: int, width: int, rows: int) -> None:
    luma = grain(height, width)
    for level in levels(luma, rows):
        even = luma[: luma.shape[0] // 2 * 2, : luma.shape[1] // 2 * 2]
        real = sharpness.residual(even)[10:-10, 10:-10].astype(np.float64)
        plain = sharpness.enlarged(sharpness.halved(even))
        again = sharpness.residual(plain)[4:-4, 4:-4].astype(np.float64)
        assert level.octave_db == pytest.approx(10 * np.log10((real**2).mean()), abs=1e-3)
        ratio = 10 * np.log10((real**2).mean() / (again**2).mean())
        assert level.above_plain_db == pytest.approx(ratio, abs=1e-3)
        luma = sharpness.halved(luma)


def test_an_octave_of_one_level() -> None:
    """Stripes of the finest kind, one level up and down: 0 dB, and nothing below."""
    luma = 100 + np.tile([1.0, -1.0], (128, 64))
    finest, second = levels(luma)
    assert finest.octave_db == pytest.approx(0, abs=0.01)
    assert second.octave_db < -39


@pytest.mark.parametrize("family", ["mountains", "stone", "islands", "forest"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_where_real_detail_ends(family: str, factor: int) -> None:
    picture = tones.luma(rendered(family, 512))
    size = (512 * factor, 512 * factor)
    found = levels(np.rint(enlarged(picture, size, Image.Resampling.LANCZOS)))
    assert sharpness.effective_scale(found) == 1 / factor


def repeated(luma: NDArray[Any], rows: int = 64) -> int:
    repeats = Repeats(luma.shape[1], luma.shape[0])
    for y in range(0, luma.shape[0], rows):
        repeats.fold(luma[y : y + rows].astype(np.float32))
    return repeats.finish()


@pytest.mark.parametrize("factor", range(2, 9))
def test_repeated_pixels_are_no_detail(factor: int) -> None:
    small = tones.luma(rendered("stone", 160))
    large = small.repeat(factor, axis=0).repeat(factor, axis=1)[1:, 1:-1]  # cut amid a square
    for rows in (1, 50, 2000):
        assert repeated(large, rows) == factor
    assert sharpness.effective_scale(levels(large)) == 1
    assert sharpness.effective_scale(levels(large), factor) == 1 / factor


def test_repeated_pixels_survive_jpeg() -> None:
    small = Image.fromarray(rendered("islands", 160))
    held = BytesIO()
    small.resize((480, 480), Image.Resampling.NEAREST).save(held, "jpeg", quality=92)
    assert repeated(tones.luma(np.asarray(Image.open(held)))) == 3


@pytest.mark.parametrize("family", ["dunes", "wood", "sky"])
def test_pictures_and_smooth_enlargements_repeat_no_pixels(family: str) -> None:
    picture = tones.luma(rendered(family, 256))
    assert repeated(picture) == 1
    for kernel in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS):
        assert repeated(np.rint(enlarged(picture, (1024, 1024), kernel))) == 1
    assert repeated(np.tile(np.arange(512) // 4, (512, 1))) == 1  # a ramp; its rows are equal
    assert repeated(picture[:16, :16]) == 1


def test_sharpness_knows_no_brightness() -> None:
    luma = grain(256, 256)
    for one, other in zip(levels(luma), levels(luma + 50), strict=True):
        assert one.above_plain_db == pytest.approx(other.above_plain_db, abs=0.01)
        assert one.octave_db == pytest.approx(other.octave_db, abs=0.01)


def test_flat_pictures_have_no_answer() -> None:
    assert sharpness.effective_scale(levels(np.full((256, 256), 80.0))) is None
    assert levels(np.zeros((63, 400))) == ()


# Repetition


@pytest.mark.parametrize("family", ["mountains", "sea", "wood", "stone", "galaxy", "forest"])
def test_pictures_repeat_nothing(family: str) -> None:
    assert repetition.strongest(tones.luma(rendered(family, 512))).score < 0.06


@pytest.mark.parametrize(("down", "right"), [(96, 96), (70, 113)])
def test_tiled_textures_repeat(down: int, right: int) -> None:
    patch = tones.luma(rendered("stone", 512))[:down, :right]
    found = repetition.strongest(np.tile(patch, (8, 6))[:512, :512])
    assert found.score > 0.9
    assert found.lag_px[0] % right == 0
    assert found.lag_px[1] % down == 0


def test_copies_with_grain_and_light_of_their_own_repeat() -> None:
    luma = grain(512, 512)
    luma[:, 200:400] = 0.8 * luma[:, 10:210] + 15 + grain(512, 200, seed=9) * 0.1
    found = repetition.strongest(luma)
    assert found.lag_px == (190, 0)
    assert found.score > 0.2


def test_a_horizon_is_no_repetition() -> None:
    luma = grain(400, 400)
    luma[180:] += 80
    assert repetition.strongest(luma).score < 0.06


def test_repetition_knows_no_brightness() -> None:
    patch = np.tile(grain(64, 64), (5, 5))
    one, other = repetition.strongest(patch), repetition.strongest(0.5 * patch + 60)
    assert one.score == pytest.approx(other.score, abs=1e-3)
    assert one.lag_px == other.lag_px
    assert repetition.strongest(patch, scale=4).lag_px == tuple(4 * lag for lag in one.lag_px)


def test_autocorrelation_is_that_of_the_sums() -> None:
    """With whitening undone by a picture that is white already, r is the plain one."""
    rng = np.random.default_rng(0)
    luma = rng.normal(size=(96, 80)) * 20
    r = repetition.autocorrelation(luma)
    assert r.shape == (49, 81)
    assert r[0, 40] == pytest.approx(1, abs=1e-5)
    assert np.abs(r[20:]).max() < 0.3
    rolled = np.concatenate([luma[:48], luma[:48]])
    r = repetition.autocorrelation(rolled)
    assert np.unravel_index(np.argmax(r[13:]), r[13:].shape) == (48 - 13, 40)


def test_boxes_are_means_of_neighbours() -> None:
    from scipy.ndimage import uniform_filter

    values = np.random.default_rng(1).random((40, 33))
    np.testing.assert_allclose(
        repetition._box(values, 15), uniform_filter(values, 15, mode="mirror"), atol=1e-9
    )


def test_crops_hold_the_pixels_of_their_places() -> None:
    luma = grain(700, 1300)
    found = []
    for rows in (1300, 64, 33):
        crops = repetition.Crops(1300, 700)
        for y in range(0, 700, rows):
            crops.fold(luma[y : y + rows])
        found.append(crops.finish())
    assert found[0] is not None
    assert found[0] == found[1] == found[2]
    assert repetition.Crops(40, 700).finish() is None


def test_textures_that_repeat_in_most_places_count_and_one_wall_does_not() -> None:
    luma = grain(1536, 1536)
    wall = np.tile(grain(64, 64, seed=4), (8, 8))
    for count, repeats in ((1, False), (6, True)):
        for i in range(count):
            y, x = divmod(i, 3)
            luma[y * 512 : y * 512 + 512, x * 512 : x * 512 + 512] = wall
        crops = repetition.Crops(1536, 1536)
        crops.fold(luma)
        peak = crops.finish()
        assert peak is not None
        assert (peak.score > 0.5) == repeats


def test_small_copies_are_means() -> None:
    picture = np.random.default_rng(0).integers(0, 65536, (103, 215, 3), dtype=np.uint16)
    for rows in (1, 10, 103):
        reduced = Reduced(215, 103, 50)
        for y in range(0, 103, rows):
            reduced.fold(picture[y : y + rows])
        assert reduced.factor == 5
        plain = picture[:100].reshape(20, 5, 43, 5, 3).mean(axis=(1, 3)) / 65535
        np.testing.assert_allclose(reduced.finish(), plain, rtol=1e-6)


# Colour


def cells(picture: NDArray[Any], shape: tuple[int, int], rows: int = 64) -> NDArray[Any]:
    made = drift.Cells(picture.shape[1], picture.shape[0], shape)
    for y in range(0, picture.shape[0], rows):
        made.fold(picture[y : y + rows])
    return made.finish()


@pytest.mark.parametrize("rows", [1, 30, 500])
def test_cells_are_means_of_linear_light(rows: int) -> None:
    picture = rendered("islands", 203)[:150]
    light = tones.linear(picture)
    # Eight parts of each pixel, so that no edge of a cell lies within a part.
    parts = np.repeat(light, 8, axis=1).astype(np.float64)
    plain = parts.reshape(6, 25, 8, 203, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(cells(picture, (6, 8), rows), plain, atol=2e-6)


def test_lab_of_known_colours() -> None:
    known = {
        (255, 255, 255): (100, 0, 0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (119, 119, 119): (50.03, 0, 0),
    }
    for colour, lab in known.items():
        light = tones.linear(np.array([[colour]], dtype=np.uint8)).astype(np.float64)
        np.testing.assert_allclose(tones.lab(light)[0, 0], lab, atol=0.02)


def test_16_and_8_bits_are_one_colour() -> None:
    rows = np.arange(256, dtype=np.uint8).reshape(1, -1, 1).repeat(3, axis=2)
    np.testing.assert_allclose(tones.linear(rows), tones.linear(rows.astype(np.uint16) * 257))
    np.testing.assert_allclose(
        tones.luma(rows), tones.luma(rows.astype(np.uint16) * 257), rtol=1e-5
    )
    np.testing.assert_allclose(tones.luma(rows)[0], np.arange(256), rtol=1e-5)
    np.testing.assert_allclose(tones.coded(tones.linear(rows)) * 255, rows, atol=1e-2)


def test_no_drift_between_sizes() -> None:
    """The same scene at two sizes: no colour has moved, whatever the detail."""
    large = rendered("dunes", 512)
    small = np.asarray(Image.fromarray(large).resize((128, 128), Image.Resampling.LANCZOS))
    found = drift.compare(cells(large, (8, 8)), cells(small, (8, 8)))
    assert found.shift_delta_e < 0.5
    assert found.max_delta_e < 3


def test_drift_everywhere_and_in_places() -> None:
    picture = rendered("dunes", 256)
    base = cells(picture, (8, 8))
    warm = np.clip(picture * [1.1, 1.0, 0.9], 0, 255).astype(np.uint8)
    found = drift.compare(cells(warm, (8, 8)), base)
    assert found.shift_delta_e > 5
    assert found.mean_shift[2] > 2  # towards yellow
    spot = picture.copy()
    spot[32:64, 96:128] = [255, 0, 255]
    found = drift.compare(cells(spot, (8, 8)), base)
    assert found.shift_delta_e < 3
    assert np.unravel_index(np.argmax(found.delta_e), (8, 8)) == (1, 3)
    assert found.max_delta_e == max(map(max, found.delta_e))


def test_a_quarter_that_is_brighter_counts() -> None:
    """No single cell tells."""
    picture = rendered("dunes", 256).astype(int)
    base = cells(picture.astype(np.uint8), (8, 8))
    picture[128:, :128] += 25
    found = drift.compare(cells(np.clip(picture, 0, 255).astype(np.uint8), (8, 8)), base)
    assert found.max_delta_e < CELL_LOOK
    assert found.quarter_delta_e > QUARTER_BAD


def test_quarters_are_means_of_light() -> None:
    rng = np.random.default_rng(0)
    for shape in ((8, 8), (3, 5), (1, 8), (6, 1)):
        one, other = rng.uniform(size=(2, *shape, 3))
        down, across = (min(2, side) for side in shape)
        double = [np.repeat(np.repeat(each, 2, axis=0), 2, axis=1) for each in (one, other)]
        quarters = [
            each.reshape(down, 2 * shape[0] // down, across, -1, 3).mean(axis=(1, 3))
            for each in double
        ]
        distance = np.linalg.norm(tones.lab(quarters[0]) - tones.lab(quarters[1]), axis=-1)
        found = drift.compare(one, other).quarter_delta_e
        assert found == pytest.approx(distance.max(), rel=1e-6)


def test_detail_that_moves_within_a_quarter_is_no_drift() -> None:
    base = np.full((8, 8, 3), 0.2)
    base[1:3, 1:3] = 0.9
    moved = np.full((8, 8, 3), 0.2)
    moved[0:2, 2:4] = 0.9
    found = drift.compare(moved, base)
    assert found.max_delta_e > 30
    assert found.quarter_delta_e < 0.01


def test_the_grid_fits_the_picture() -> None:
    assert drift.grid_shape(2000, 1000) == (4, 8)
    assert drift.grid_shape(100, 100) == (8, 8)
    assert drift.grid_shape(5, 3) == (3, 5)
    assert drift.grid_shape(4000, 20) == (1, 8)
    assert drift.same_shape((2048, 1536), (128, 96))
    assert not drift.same_shape((2048, 1536), (128, 128))
    np.testing.assert_allclose(drift.shares(103, 7).sum(axis=1), 1)
