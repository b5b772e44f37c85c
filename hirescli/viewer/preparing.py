"""From any picture to tiles: as it is where it is stored in tiles, else by a copy made once.

The copy is a tiled pyramidal TIFF in a temporary folder, written by libvips from the top down: a
few rows are held, whatever the size. Its tiles are JPEG, as those that the page gets.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from hirescli.errors import RequestError
from hirescli.output.picture_header import Header, load, naming, read_header
from hirescli.output.pictures import to_spool
from hirescli.output.pyramid import PageLevel, levels_of
from hirescli.output.zstd_tiff import has_zstd
from hirescli.viewer.tiles import DeepZoomTiles, TiffTiles, Tiles

if TYPE_CHECKING:
    import pyvips

NOT_SHOWN = "`hires view` does not show {} folders"
_TILE_PX = 512
_QUALITY = 92
# Tiles of these sides are served as they are stored; others are cut anew.
_TILE_RANGE_PX = range(128, 1025)
# A smaller copy with a longer side leaves too much to shrink for one tile.
_SMALLEST_PX = 4096
_MOST_SHRUNK_STEPS = 2


def check(path: Path) -> None:
    """Look at a picture without decoding it.

    Raises:
        RequestError: If it is missing, truncated, damaged in its header, or no picture.
    """
    if path.suffix.lower() == ".dzi":
        DeepZoomTiles(path)
    elif path.is_dir():
        raise RequestError(
            f"{path}: {NOT_SHOWN.format(path.suffix)}; name another output, or .dzi"
        )
    elif _stored_levels(path) is None:
        read_header(path)


def tiles_of(path: Path, copy: Path, begun: Callable[[pyvips.Image], None]) -> Tiles:
    """The tiles of a picture.

    Args:
        path: A TIFF, PNG, JPEG, WebP, AVIF, GIF or .dzi.
        copy: Where the copy goes, if one is needed.
        begun: Told of what is copied, so that it can be ended.

    Raises:
        RequestError: As `check`, or if its pixels are damaged.
        RunError: If the disk has no room.
    """
    if path.suffix.lower() == ".dzi":
        return DeepZoomTiles(path)
    levels = _stored_levels(path)
    if levels is not None:
        stored_px = levels[0].tile_px
        fits = stored_px is not None and stored_px in _TILE_RANGE_PX
        tiles = TiffTiles(path, levels, tile_px=stored_px if stored_px and fits else _TILE_PX)
        with naming(path):  # a compression that is not read shows with the first tile only
            tiles.tile(tiles.geometry.min_level, 0, 0)
        return tiles
    header = read_header(path)
    if _is_plain(header) and header.zstd_page is None:
        with naming(path):
            return _copied(header.image, copy, begun)
    spool = copy.with_name(copy.name + ".spool")
    try:
        to_spool(path, spool)
        return tiles_of_spool(spool, copy, begun)
    finally:
        spool.unlink(missing_ok=True)


def tiles_of_spool(spool: Path, copy: Path, begun: Callable[[pyvips.Image], None]) -> Tiles:
    """The tiles of a spool of 8 or 16 bits, of which all rows stand; else as `tiles_of`."""
    with naming(spool):
        return _copied(load(spool, "tiff"), copy, begun)


def _stored_levels(path: Path) -> list[PageLevel] | None:
    """The levels of a pyramid that can be served from its file; None if it is none.

    Raises:
        RequestError: If the file is a truncated or damaged TIFF.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(2) not in (b"II", b"MM"):
            return None
    levels = levels_of(path)
    if levels[0].tile_px is None:  # in strips, or in tiles that are not square
        return None
    if has_zstd(path, levels[0].page):  # libvips decodes none
        return None
    with naming(path):
        image = load(path, "tiff", page=levels[0].page)
    steps = [level.step for level in levels]
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    smallest_px = max(image.width, image.height) >> steps[-1]
    orientation = image.get("orientation") if image.get_typeof("orientation") else 1
    plain = image.format in ("uchar", "ushort") and image.interpretation in (
        "srgb", "rgb", "rgb16", "b-w", "grey16",
    )  # fmt: skip
    fits = max(gaps, default=0) <= _MOST_SHRUNK_STEPS and smallest_px <= _SMALLEST_PX
    return levels if plain and fits and orientation == 1 else None


def _is_plain(header: Header) -> bool:
    """Whether its pixels are those of the screen: 8-bit sRGB, upright, nothing transparent."""
    image = header.image
    profile = image.get_typeof("icc-profile-data")
    return (
        image.format == "uchar"
        and image.interpretation in ("srgb", "b-w")
        and image.bands in (1, 3)
        and not header.alpha
        and header.orientation == 1
        and (not profile or _is_srgb(image))
    )


def _is_srgb(image: pyvips.Image) -> bool:
    """Whether its profile is the one that we put into outputs."""
    import pyvips

    ours = pyvips.Operation.call("profile_load", "srgb")
    return bytes(image.get("icc-profile-data")) == bytes(ours)


def _copied(image: pyvips.Image, copy: Path, begun: Callable[[pyvips.Image], None]) -> Tiles:
    if image.format == "ushort":
        image = image.colourspace("srgb")
    begun(image)
    # libvips reads no tile that is more than twice as large as its picture; TIFF's are multiples
    # of 16.
    tile_px = min(_TILE_PX, -(-max(image.width, image.height) // 16) * 16)
    image.tiffsave(
        str(copy), tile=True, tile_width=tile_px, tile_height=tile_px, pyramid=True,
        bigtiff=True, compression="jpeg", Q=_QUALITY, keep="none",
    )  # fmt: skip
    return TiffTiles(copy, levels_of(copy), tile_px=_TILE_PX)
