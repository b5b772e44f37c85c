"""Pictures that are no use: refused by name, before work, with nothing left behind."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_pictures import PIXELS, Write, pillow, spooled, tiff

from hirescli.errors import RequestError, RunError
from hirescli.output import tiff_page
from hirescli.output.pictures import look, to_spool
from hirescli.output.tiff_page import largest_page


def refused(path: Path) -> str:
    """The message, when a picture is refused and nothing is left behind."""
    folder = path.parent
    before = sorted(folder.iterdir()) if folder.is_dir() else []
    with pytest.raises(RequestError) as caught:
        to_spool(path, folder / "spool")
    if folder.is_dir():
        assert sorted(folder.iterdir()) == before
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


NINE = np.dstack([PIXELS] * 3)
COMPRESSED: dict[str, Write] = {
    "a.png": pillow(PIXELS),
    "a.jpg": pillow(PIXELS, quality=95),
    "progressive.jpg": pillow(PIXELS, quality=95, progressive=True),
    "a.webp": pillow(PIXELS, lossless=True),
    "a.gif": pillow(PIXELS),
    "strips.tif": tiff(PIXELS, compression="deflate", rowsperstrip=8),
    "tiles.tif": tiff(PIXELS, compression="deflate", tile=(16, 16)),
    "jpeg.tif": tiff(PIXELS, compression="jpeg", tile=(16, 16)),
    "plain.tif": tiff(PIXELS),
    "twice-tiles.tif": tiff(
        PIXELS, description="x", metadata={}, compression="deflate", tile=(16, 16)
    ),
    "twice.tif": tiff(PIXELS, description="x", metadata={}, compression="deflate", rowsperstrip=8),
}


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.97])
@pytest.mark.parametrize("name", COMPRESSED)
def test_truncated_files_are_refused(name: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / name
    COMPRESSED[name](path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert any(word in refused(path) for word in ("truncated", "damaged", "is no"))
    with pytest.raises(RequestError):
        look(path)


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "progressive.jpg", "a.gif", "tiles.tif", "twice-tiles.tif"]
)
def test_damaged_pixels_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    COMPRESSED[name](path)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    assert "damaged" in refused(path)


def test_flipped_bits_beside_tags_out_of_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.tif"
    COMPRESSED["twice.tif"](path)
    with tifffile.TiffFile(path) as opened:
        page = opened.pages.first
        middle = page.dataoffsets[3] + page.databytecounts[3] // 2
    data = bytearray(path.read_bytes())
    data[middle] ^= 1
    path.write_bytes(data)
    assert "damaged" in refused(path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.png")
    assert "a folder" in refused(tmp_path)
    texts = {
        "page.png": b"<!DOCTYPE html>",
        "p.svg": b"<svg/>",
        "l.jpg": b"version https://git-lfs",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text * 9)
        assert "JPEG, PNG, TIFF" in refused(tmp_path / name)
    (tmp_path / "empty.png").write_bytes(b"")
    assert "empty (0 bytes)" in refused(tmp_path / "empty.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "no plain file" in refused(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match="web address"):
        look("https://example.org/a.png")
    with pytest.raises(RequestError, match="null"):
        look("a\0b.png")


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_several_pictures_in_a_file_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    others = [Image.fromarray(255 - PIXELS), Image.fromarray(PIXELS[::-1])]
    Image.fromarray(PIXELS).save(path, save_all=True, append_images=others)
    message = refused(path)
    assert "3 pages" in message if name == "a.tif" else "3 pictures" in message


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (tiff(PIXELS.astype("u4")), "uint"),
        (tiff(PIXELS.astype("i2")), "short"),
        (tiff(NINE, photometric="minisblack", planarconfig="contig"), "9 channels"),
        (tiff(np.full((9, 9, 3), np.nan, "f4")), "NaN"),
        (tiff(PIXELS.astype("f4")), "above 1"),
        (tiff(PIXELS.astype("c8")), "damaged"),
    ],
    ids=["uint32", "int16", "channels", "nan", "0-255", "complex"],
)  # fmt: skip
def test_samples_of_other_kinds_are_refused(write: Write, word: str, tmp_path: Path) -> None:
    write(tmp_path / "a.tif")
    assert word in refused(tmp_path / "a.tif")


def bomb(width_px: int, height_px: int) -> bytes:
    """A whole, valid PNG of black 1-bit pixels, as small as PNG can say it."""
    row_bytes, block_bytes = 1 + (width_px + 7) // 8, 2**20
    count = row_bytes * height_px
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(block_bytes)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = rest.compress(bytes(count % block_bytes)) + rest.flush()
    adler = (count % 65521) << 16 | 1  # of zeros alone
    data = b"\x78\xda" + block * (count // block_bytes) + tail + adler.to_bytes(4)
    header = struct.pack(">IIBBBBB", width_px, height_px, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4)
        for name, body in chunks
    )


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bomb(999, 777))
    assert spooled(path).max() == 0  # the same on a small scale is a good picture
    (tmp_path / "spool").unlink()
    path.write_bytes(bomb(60_000, 60_000))
    assert path.stat().st_size < 500_000
    message = refused(path)
    assert "60000x60000 px (3600.0 MP)" in message
    assert "32768x32768" in message
    with pytest.raises(RequestError, match="3600"):
        look(path)


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    assert look(path, most_px=150 * 110).width_px == 150
    for read in (look, lambda p, **limit: to_spool(p, tmp_path / "spool", **limit)):
        with pytest.raises(RequestError, match="150x110 px"):
            read(path, most_px=150 * 110 - 1)


def test_pictures_that_are_decoded_whole_have_a_lower_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("L", (12_000, 12_000)).save(path, progressive=True, quality=30)
    assert "interlaced jpeg" in refused(path)
    Image.new("L", (12_000, 12_000)).save(path, quality=30)
    assert look(path).width_px == 12_000


def test_strips_that_are_read_whole_have_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tiff(PIXELS, compression="deflate")(path)
    largest_page(path, most_held_px=1000)  # libvips reads single rows of it
    for options in ({"compression": "jpeg"}, {"compression": "deflate", "tile": (64, 64)}):
        tiff(PIXELS, **options)(path)
        with pytest.raises(RequestError, match="read whole"):
            largest_page(path, most_held_px=1000)
    monkeypatch.setattr(tiff_page, "_MOST_PACKED_BYTES", 1000)
    assert "1.0 kB" in refused(path)
    tiff(PIXELS)(path)
    assert look(path).width_px == 150


@pytest.mark.parametrize(("height", "orientation"), [(1600, 1), (900, 6)])
def test_a_full_disk_leaves_nothing(
    small_disk: Path, tmp_path: Path, height: int, orientation: int
) -> None:
    """8 MiB hold one spool of 900x900 px, not the second in which it is turned."""
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (900, height)).save(path, exif=exif)
    with pytest.raises(RunError, match="disk full"):
        to_spool(path, small_disk / "spool")
    assert list(small_disk.iterdir()) == []
