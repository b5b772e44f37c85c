"""Tiles are the pixels of the file, from every kind of file, and sizes that are no multiples."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from growing import fill, ramp, write_output
from PIL import Image

from hirescli.errors import RequestError
from hirescli.viewer.preparing import check, tiles_of, tiles_of_spool
from hirescli.viewer.tiles import DeepZoomTiles, Geometry, OutsideError, Tiles

TOLERANCE = 6  # levels; JPEG


def put_together(tiles: Tiles, level: int) -> np.ndarray:
    """A level from its tiles, without overlap."""
    geometry = tiles.geometry
    width_px, height_px = geometry.level_size(level)
    made = np.zeros((height_px, width_px, 3), np.uint8)
    side = geometry.tile_px
    for row in range(-(-height_px // side)):
        for column in range(-(-width_px // side)):
            assert geometry.has(level, column, row)
            tile = np.asarray(
                Image.open(io.BytesIO(tiles.tile(level, column, row))).convert("RGB")
            )
            left, above = (min(geometry.overlap_px, index * side) for index in (column, row))
            tile = tile[above : above + side, left : left + side]
            x0, y0 = column * side, row * side
            made[y0 : y0 + tile.shape[0], x0 : x0 + tile.shape[1]] = tile
    return made


def assert_all_levels(tiles: Tiles, pixels: np.ndarray) -> None:
    """Every level shows the picture, in its place and to its edges."""
    geometry = tiles.geometry
    assert (geometry.height_px, geometry.width_px) == pixels.shape[:2]
    whole = put_together(tiles, geometry.max_level)
    assert np.abs(whole.astype(int) - pixels).max() <= TOLERANCE
    for level in range(geometry.min_level, geometry.max_level):
        factor = 2 ** (geometry.max_level - level)
        made = put_together(tiles, level).astype(int)
        ys = np.minimum(np.arange(made.shape[0]) * factor + factor // 2, pixels.shape[0] - 1)
        xs = np.minimum(np.arange(made.shape[1]) * factor + factor // 2, pixels.shape[1] - 1)
        assert np.abs(made - pixels[np.ix_(ys, xs)]).max() <= TOLERANCE + 2 * factor


@pytest.mark.parametrize("compression", ["deflate", "lzw", "jpeg", "none"])
def test_our_pyramid(tmp_path: Path, compression: str) -> None:
    pixels = ramp(701, 533)
    path = write_output(tmp_path / "a.tif", pixels, tile_px=128, compression=compression)
    tiles = tiles_of(path, tmp_path / "copy.tif", print)
    assert tiles.geometry.tile_px == 128
    assert not (tmp_path / "copy.tif").exists()  # straight from the file
    assert_all_levels(tiles, pixels)


@pytest.mark.parametrize("size", [(1, 1), (513, 512), (1024, 1), (64, 2000)])
@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_sizes(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    pixels = ramp(*size)
    form = {"tif": "tiff", "png": "png", "jpg": "jpeg"}[suffix]
    path = write_output(tmp_path / f"a.{suffix}", pixels, format=form)
    tiles = tiles_of(path, tmp_path / "copy.tif", print)
    whole = put_together(tiles, tiles.geometry.max_level)
    assert whole.shape == pixels.shape
    assert np.abs(whole.astype(int) - pixels).max() <= 2 * TOLERANCE


def test_sub_images(tmp_path: Path) -> None:
    pixels = ramp(640, 480)
    path = tmp_path / "sub.tif"
    image = pyvips.Image.new_from_array(pixels)
    image.tiffsave(
        str(path), tile=True, tile_width=64, tile_height=64, pyramid=True, subifd=True,
        compression="deflate", depth="onetile",
    )  # fmt: skip
    tiles = tiles_of(path, tmp_path / "copy.tif", print)
    assert not (tmp_path / "copy.tif").exists()
    assert_all_levels(tiles, pixels)


def test_a_foreign_pyramid_with_gaps(tmp_path: Path) -> None:
    """Levels four times smaller each, unmarked, as slide scanners write them."""
    pixels = ramp(1024, 768)
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 4, 16):
            level = pixels[step // 2 :: step, step // 2 :: step]
            writer.write(level, tile=(128, 128), photometric="rgb", metadata=None)
    tiles = tiles_of(path, tmp_path / "copy.tif", print)
    assert not (tmp_path / "copy.tif").exists()
    assert_all_levels(tiles, pixels)


def test_16_bits_in_tiles(tmp_path: Path) -> None:
    pixels = ramp(300, 200)
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, pixels.astype(np.uint16) * 257, tile=(128, 128), photometric="rgb")
    assert_all_levels(tiles_of(path, tmp_path / "copy.tif", print), pixels)


@pytest.mark.parametrize("bits", [8, 16])
def test_spools(tmp_path: Path, bits: int) -> None:
    pixels = ramp(900, 700)
    spool = fill(tmp_path / "stage-0.spool.tif", pixels, bits)
    tiles = tiles_of_spool(spool, tmp_path / "copy.tif", print)
    spool.unlink()  # the next stage takes its place
    assert_all_levels(tiles, pixels)


def test_a_picture_that_lies_on_its_side(tmp_path: Path) -> None:
    path = tmp_path / "lying.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp(320, 200)).save(path, exif=exif, quality=95)
    tiles = tiles_of(path, tmp_path / "copy.tif", print)
    assert (tiles.geometry.width_px, tiles.geometry.height_px) == (200, 320)
    assert set(tmp_path.iterdir()) == {path, tmp_path / "copy.tif"}  # no spool is left


def deep_zoom(folder: Path, pixels: np.ndarray) -> Path:
    image = pyvips.Image.new_from_array(pixels)
    image.dzsave(str(folder / "dunes"), tile_size=128, overlap=1, suffix=".jpg[Q=95]")
    return folder / "dunes.dzi"


def test_deep_zoom(tmp_path: Path) -> None:
    path = deep_zoom(tmp_path, ramp(500, 300))
    tiles = tiles_of(path, tmp_path / "copy.tif", print)
    assert tiles.geometry == Geometry(500, 300, 128, 1, 0, "jpg")
    assert tiles.tile(9, 1, 1) == (tmp_path / "dunes_files/9/1_1.jpg").read_bytes()


def test_a_symlink_out_of_the_tiles(tmp_path: Path) -> None:
    path = deep_zoom(tmp_path, ramp(500, 300))
    (tmp_path / "secret.txt").write_text("secret")
    tile = tmp_path / "dunes_files/9/1_1.jpg"
    tile.unlink()
    tile.symlink_to(tmp_path / "secret.txt")
    with pytest.raises(OutsideError):
        DeepZoomTiles(path).tile(9, 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        "", "<Image", "<html/>", "<Image Format='jpg' TileSize='0' Overlap='0'>",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><Image/>",
        "<Image Format='svg' TileSize='9' Overlap='0'><Size Width='9' Height='9'/></Image>",
        "<Image Format='jpg' TileSize='9' Overlap='0'><Size Width='-9' Height='9'/></Image>",
        "<Image Format='jpg' TileSize='9' Overlap='0'><Size Width='9' Height='9'/></Image>",
    ],
)  # fmt: skip
def test_damaged_deep_zoom(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.dzi"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"a\.dzi"):
        check(path)


@pytest.mark.parametrize("form", ["tiff", "png", "jpeg"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_files_are_named(tmp_path: Path, form: str, share: float) -> None:
    suffix = {"tiff": "tif", "png": "png", "jpeg": "jpg"}[form]
    path = write_output(tmp_path / f"a.{suffix}", ramp(512, 400), format=form)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RequestError, match=path.name):
        check(path)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("a.tif", {"compression": "zstd", "tile_px": 128}),
        ("sub.tif", {"compression": "zstd", "tile_px": 128, "pyramid": "subifd"}),
        ("a.avif", {"format": "avif", "quality": 100}),
    ],
)
def test_what_libvips_reads_only_with_help(tmp_path: Path, name: str, choices: dict) -> None:
    path = write_output(tmp_path / name, ramp(500, 300), **choices)
    check(path)
    assert_all_levels(tiles_of(path, tmp_path / "copy.tif", print), ramp(500, 300))


def test_a_compression_that_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "other.tif"
    tifffile.imwrite(path, ramp(300, 200), tile=(128, 128), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages.first.tags["Compression"].overwrite(34712)  # JPEG 2000
    with pytest.raises(RequestError, match=r"other\.tif is stored in a way that is not read here"):
        tiles_of(path, tmp_path / "copy.tif", print)


def test_damage_in_the_first_tiles_is_named(tmp_path: Path) -> None:
    path = write_output(tmp_path / "a.tif", ramp(512, 512), tile_px=128)
    with tifffile.TiffFile(path) as tiff:
        places = [place for page in tiff.pages for place in page.dataoffsets]
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(bytes(64))
    with pytest.raises(RequestError, match=r"a\.tif is damaged"):
        tiles_of(path, tmp_path / "copy.tif", print)


def test_tiles_share_pixels_with_their_neighbours(tmp_path: Path) -> None:
    path = write_output(tmp_path / "a.tif", ramp(700, 500), tile_px=256)
    tiles = tiles_of(path, tmp_path / "copy.tif", print)
    assert tiles.geometry.overlap_px == 1
    sizes = [
        Image.open(io.BytesIO(tiles.tile(10, column, row))).size
        for column, row in [(0, 0), (1, 0), (2, 1)]
    ]
    assert sizes == [(257, 257), (258, 257), (700 - 511, 500 - 255)]


def test_a_picture_in_strips_with_a_tiled_copy(tmp_path: Path) -> None:
    pixels, path = ramp(600, 400), tmp_path / "strips.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, rowsperstrip=400, photometric="rgb", compression="deflate")
        writer.write(pixels[::2, ::2].copy(), tile=(128, 128), photometric="rgb", subfiletype=1)
    tiles = tiles_of(path, tmp_path / "copy.tif", print)
    assert (tmp_path / "copy.tif").exists()  # else every tile would decode the strip
    assert_all_levels(tiles, pixels)
