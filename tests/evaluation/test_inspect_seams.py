"""Seams: planted ones are found where they are, and pictures without have none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hirescli.evaluation.inspection.calibration import COLOUR, tiled
from hirescli.evaluation.inspection.seams import (
    MOST_BLOCKS,
    LineMeans,
    Seam,
    find_seams,
    profile,
    strongest,
)
from hirescli.evaluation.inspection.verdicts import SEAM_LOOK_Z, seam_verdict
from tests.evaluation.inspected import grain, rendered


def means(levels: NDArray[Any], rows: int = 64) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of a picture, or of grey levels (height, width), with fractions."""
    if levels.ndim == 2:
        deep = np.rint(np.clip(levels, 0, 255) * 257).astype(np.uint16)
        levels = np.repeat(deep[:, :, None], 3, axis=2)
    lines = LineMeans(levels.shape[1], levels.shape[0])
    for y in range(0, levels.shape[0], rows):
        lines.fold(levels[y : y + rows])
    return lines.finish()


def seams(picture: NDArray[Any], tile_px: tuple[int, ...] = ()) -> tuple[Seam, Seam]:
    columns, rows = means(picture)
    found = (
        strongest(find_seams(columns, "columns", tile_px)),
        strongest(find_seams(rows, "rows", tile_px)),
    )
    assert found[0] is not None
    assert found[1] is not None
    return found[0], found[1]


@pytest.mark.parametrize("family", ["dunes", "canyon", "sea", "hills", "wood"])
def test_one_level_of_a_tiled_decode_is_found(family: str) -> None:
    """A jump of one level of 255 in the mean; nobody sees it in a single pixel."""
    picture = tiled(rendered(family, 768), period=192, offset=(37, 101), jump=1)
    columns, rows = seams(picture)
    worst = max(columns, rows, key=lambda seam: seam.z)
    assert worst.period_px == 192
    assert worst.offset_px == {"columns": 37, "rows": 101}[worst.axis]
    assert worst.ratio > 1.4
    assert seam_verdict(worst) != "fine"


def test_two_levels_are_sure() -> None:
    for family in ("sky", "mountains", "wood"):
        picture = tiled(rendered(family, 768), period=192, offset=(37, 101), jump=2)
        assert seam_verdict(max(seams(picture), key=lambda seam: seam.z)) == "bad", family


@pytest.mark.parametrize("family", ["dunes", "sky", "sea", "mountains", "islands", "wood"])
def test_pictures_without_have_none(family: str) -> None:
    for seam in seams(rendered(family, 768)):
        assert seam_verdict(seam) == "fine", seam


def test_the_ratio_is_about_1_where_there_are_none() -> None:
    columns, rows = means(grain(1024, 1536))
    for axis, c in (("columns", columns), ("rows", rows)):
        inner = profile(c[0])[10:-10]
        assert abs(np.median(inner) - 1) < 0.02
        many = [seam.ratio for seam in find_seams(c, axis) if seam.lines >= 8]
        assert 0.9 < np.median(many) < 1.1
        assert max(many) < 1.5  # the largest of hundreds of offsets


@pytest.mark.parametrize("channel", ["R-Y", "B-Y"])
def test_seams_in_colour_alone_are_found(channel: str) -> None:
    """A clean gradient, where each second tile is redder, or bluer, by equal brightness."""
    y, x = np.mgrid[:768, :1024]
    tile = ((x - 37) // 256 + (y - 101) // 192) % 2
    shift = {"R-Y": [5, -5 * 0.2126 / 0.7152, 0], "B-Y": [0, -5 * 0.0722 / 0.7152, 5]}[channel]
    rng = np.random.default_rng(0)
    plain = (60 + y / 8 + x / 16)[:, :, None] + rng.uniform(-0.5, 0.5, (768, 1024, 3))
    for planted in (False, True):
        picture = np.rint(plain + planted * tile[:, :, None] * shift).astype(np.uint8)
        for seam in seams(picture):
            assert seam_verdict(seam) == ("bad" if planted else "fine"), seam
            if planted:
                assert seam.channel == channel
                period, first = (256, 37) if seam.axis == "columns" else (192, 101)
                assert seam.period_px == period
                assert abs(seam.offset_px - first) <= seam.ramp_px


@pytest.mark.parametrize("family", ["dunes", "sea", "canyon"])
def test_colour_shifts_of_tiles_are_found(family: str) -> None:
    picture = tiled(rendered(family, 768), period=192, offset=(37, 101), jump=4, colour=COLOUR)
    worst = max(seams(picture), key=lambda seam: seam.z)
    assert seam_verdict(worst) != "fine"
    assert worst.period_px % 192 == 0
    assert worst.channel != "Y"


def test_a_blended_tiling_is_found() -> None:
    """The overlap spreads two levels over 24 px; in one line there is nothing to see."""
    sky = grain(1536, 1536, beta=3) + np.random.default_rng(0).normal(size=(1536, 1536))
    picture = np.repeat(sky[:, :, None], 3, axis=2)
    for seam in seams(tiled(picture, period=256, offset=(37, 101), jump=2, ramp=24)):
        assert seam.z > SEAM_LOOK_Z
        assert seam.ramp_px >= 8
        assert seam.period_px % 256 == 0
    for seam in seams(np.rint(picture).astype(np.uint8)):
        assert seam.z < SEAM_LOOK_Z


@settings(max_examples=12)
@given(
    st.sampled_from([96, 128, 200, 256]),
    st.integers(0, 95),
    st.booleans(),
)
def test_any_offset_and_direction(period: int, offset: int, down: bool) -> None:
    levels = grain(512, 900, beta=1.2, seed=offset)
    levels += 8.0 * ((np.arange(900) - offset) // period % 2)
    means_of_lines = means(levels.T if down else levels)[1 if down else 0]
    found = strongest(find_seams(means_of_lines, "rows" if down else "columns"))
    assert found is not None
    assert (found.period_px, found.offset_px) == (period, offset or period)
    assert found.z > SEAM_LOOK_Z
    assert found.axis == ("rows" if down else "columns")


def test_an_edge_is_no_line() -> None:
    """Tiles from 0 on: the first seam is where the second tile begins."""
    for period in (96, 256):
        levels = grain(512, 900) + 8.0 * (np.arange(900) // period % 2)
        found = seams(levels)[0]
        assert (found.period_px, found.offset_px) == (period, period)
        assert found.lines == len(range(period, 900, period))


def test_periods_that_are_no_multiple_of_8_are_found_by_their_lines() -> None:
    levels = grain(512, 1200)
    levels += 4.0 * ((np.arange(1200) - 11) // 173 % 2)
    assert (seams(levels)[0].period_px, seams(levels)[0].offset_px) == (173, 11)


def test_tile_sizes_of_the_file_are_tried() -> None:
    columns, _ = means(grain(256, 700))
    assert 99 in {seam.period_px for seam in find_seams(columns, "columns", (99,))}


def test_one_horizon_is_no_seam() -> None:
    levels = grain(800, 800)
    levels[333:] += 60
    assert seam_verdict(seams(levels)[1]) == "fine"


@pytest.mark.parametrize("period", [2, 3, 8, 16])
def test_what_every_block_does_cancels(period: int) -> None:
    """JPEG's blocks, decoders' patches and enlargements have lines in every few columns."""
    levels = grain(800, 800)
    levels += 2.0 * (np.arange(800) // period % 2)
    for seam in seams(levels):
        assert seam.z < SEAM_LOOK_Z


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_means_are_those_of_the_whole_picture(rows: int, dtype: Any) -> None:
    top = np.iinfo(dtype).max
    picture = np.random.default_rng(0).integers(0, top + 1, (300, 215, 3), dtype=dtype)
    columns, across = means(picture, rows)
    red, green, blue = np.moveaxis(picture * (255 / top), -1, 0)
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    for channel, plain in enumerate((y, red - y, blue - y)):
        of_columns = plain[:288].reshape(18, 16, 215).mean(axis=1)
        np.testing.assert_allclose(columns[channel], of_columns, atol=2e-4)
        of_rows = plain[:, :208].reshape(300, 13, 16).mean(axis=2)
        np.testing.assert_allclose(across[channel], of_rows.T, atol=2e-4)


def test_the_formula() -> None:
    """P of one line by hand, without the division by the median."""
    c = grain(3, 900)[:, :].astype(np.float64)
    x, d = 400, np.diff(c, axis=1, prepend=np.nan)

    def jump(x: int) -> NDArray[Any]:
        return np.abs(d[:, x] - (d[:, x - 1] + d[:, x + 1]) / 2)

    def t(x: int) -> float:
        around = np.mean([jump(x + i) for i in range(-8, 9) if abs(i) >= 2], axis=0)
        return float(np.minimum(jump(x) / (around + 0.05), 6).mean())

    p = {each: t(each) for each in range(10, 890)}
    for period in (16, 3):
        middle = [np.median([p[i] for i in p if i % period == r]) for r in range(period)]
        p = {each: value / middle[each % period] for each, value in p.items()}
    assert profile(c.astype(np.float32))[x] == pytest.approx(p[x], rel=1e-4)


def test_brightness_and_contrast_change_little() -> None:
    levels = grain(512, 900) + 3.0 * ((np.arange(900) - 21) // 128 % 2)
    plain, brighter = seams(levels)[0], seams(levels + 10)[0]
    assert (plain.period_px, plain.offset_px) == (brighter.period_px, brighter.offset_px)
    assert brighter.ratio == pytest.approx(plain.ratio, rel=1e-3)
    assert seams(levels * 0.5)[0].ratio == pytest.approx(plain.ratio, rel=0.1)


def test_memory_of_the_means_is_bounded() -> None:
    lines = LineMeans(40_000, 20_000)
    columns, rows = lines.finish()
    assert columns.shape[1] <= MOST_BLOCKS
    assert rows.shape[1] <= MOST_BLOCKS


def test_short_sides_have_no_answer() -> None:
    columns, rows = means(grain(100, 400))
    assert find_seams(rows, "rows") == []
    assert find_seams(columns, "columns") != []
    assert strongest([]) is None


def test_a_flat_picture_has_no_seams() -> None:
    for seam in seams(np.full((400, 400), 90, dtype=np.float32)):
        assert seam_verdict(seam) == "fine"
