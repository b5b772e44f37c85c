from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from hirescli.errors import RunError
from hirescli.output.spool import Bits, Spool, quantise, spool_bytes


def noise(width_px: int, height_px: int, bits: Bits) -> np.ndarray:
    shape = (height_px, width_px, 3)
    return np.random.default_rng(1).integers(0, 2**bits, shape, dtype=f"u{bits // 8}")


@pytest.mark.parametrize("bits", [8, 16])
def test_rows_come_back_and_other_programs_read_them(tmp_path: Path, bits: Bits) -> None:
    path, pixels = tmp_path / "spool.tif", noise(53, 131, bits)
    with Spool.create(path, width_px=53, height_px=131, bits=bits) as spool:
        for y0 in (100, 0, 50):  # in any order
            spool.write_rows(y0, pixels[y0 : y0 + 50])
        spool.flush()
    with Spool.open(path) as spool:
        assert (spool.width_px, spool.height_px, spool.bits) == (53, 131, bits)
        assert np.array_equal(spool.read_rows(7, 90), pixels[7:97])
        assert spool.read_rows(131, 0).shape == (0, 53, 3)
    assert np.array_equal(tifffile.imread(path), pixels)
    assert np.array_equal(pyvips.Image.new_from_file(str(path)).numpy(), pixels)


def test_the_file_is_a_reserved_bigtiff_in_short_strips(tmp_path: Path) -> None:
    path = tmp_path / "spool.tif"
    Spool.create(path, width_px=640, height_px=1000).close()
    assert path.stat().st_blocks * 512 >= spool_bytes(width_px=640, height_px=1000, bits=8)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert tiff.pages.first.rowsperstrip == 64


def test_an_unfinished_spool_shows_its_finished_rows(tmp_path: Path) -> None:
    path, pixels = tmp_path / "spool.tif", noise(64, 300, 8)
    spool = Spool.create(path, width_px=64, height_px=300)
    spool.write_rows(0, pixels[:120])  # neither flushed nor closed, as after a kill
    seen = tifffile.imread(path)
    spool.close()
    assert np.array_equal(seen[:120], pixels[:120])
    assert not seen[120:].any()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    pixels = noise(33, 70, 16)
    for name in ("a", "b"):
        with Spool.create(tmp_path / name, width_px=33, height_px=70, bits=16) as spool:
            spool.write_rows(0, pixels)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing", "tiled"])
def test_a_damaged_spool_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "spool.tif"
    Spool.create(path, width_px=64, height_px=64).close()
    if damage == "truncated":
        os.truncate(path, 5000)
    elif damage == "missing":
        path.unlink()
    elif damage == "tiled":
        tifffile.imwrite(path, noise(64, 64, 8), tile=(16, 16), photometric="rgb")
    else:
        path.write_text("no picture" if damage == "text" else "")
    with pytest.raises(RunError, match=r"spool.*start again"):
        Spool.open(path)


def test_a_spool_is_written_on_only_where_asked(tmp_path: Path) -> None:
    path, rows = tmp_path / "spool.tif", noise(5, 4, 8)
    Spool.create(path, width_px=5, height_px=4).close()
    with Spool.open(path) as spool, pytest.raises(RunError):
        spool.write_rows(0, rows)
    before = path.stat()
    with Spool.open(path, writable=True) as spool:
        spool.write_rows(0, rows)
        assert (spool.read_rows(0, 4) == rows).all()
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)


def test_a_full_disk_is_found_before_the_first_row(small_disk: Path) -> None:
    path = small_disk / "spool.tif"
    with pytest.raises(RunError, match=r"disk full.*50\.3 MB.*free.*-o"):
        Spool.create(path, width_px=4096, height_px=4096)
    assert not path.exists()


def test_rows_fit_into_a_reserved_spool_on_a_full_disk(small_disk: Path) -> None:
    pixels = noise(1024, 1024, 8)
    with Spool.create(small_disk / "spool.tif", width_px=1024, height_px=1024) as spool:
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "filler").write_bytes(bytes(8 * 2**20))
        spool.write_rows(0, pixels)
        spool.flush()
        assert np.array_equal(spool.read_rows(0, 1024), pixels)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-0.5, 1.5, width=32), min_size=3, max_size=30), st.sampled_from([8, 16]))
def test_quantising_rounds_and_clips(values: list[float], bits: Bits) -> None:
    levels = quantise(np.array(values, dtype=np.float32), bits)
    exact = np.clip(np.array(values), 0, 1) * (2**bits - 1)
    assert levels.dtype == f"u{bits // 8}"
    assert np.abs(levels - exact).max() <= 0.51


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_become_a_picture(bad: float) -> None:
    with pytest.raises(RunError, match="NaN or infinity"):
        quantise(np.array([0.5, bad]), 8)
