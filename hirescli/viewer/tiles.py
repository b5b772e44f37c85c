"""Tiles of pictures that are stored in tiles: pyramidal TIFFs and Deep Zoom folders.

All are numbered as Deep Zoom numbers them: level `max_level` is the picture itself, and level l
has ceil(side / 2**(max_level - l)) pixels a side.

References:
    Microsoft, "Deep Zoom File Format Overview".
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from xml.etree import ElementTree

from hirescli.errors import RequestError
from hirescli.output.pyramid import PageLevel, open_level

if TYPE_CHECKING:
    import pyvips

_JPEG_QUALITY = 92
_OVERLAP_PX = 1  # else browsers that smooth enlarged tiles show their edges
_MOST_DZI_BYTES = 2**16
_DZI_SUFFIXES = ("jpg", "jpeg", "png")
_MOST_TILE_PX = 4096


class OutsideError(Exception):
    """A tile's file leads out of the folder of tiles."""


@dataclass(frozen=True)
class Geometry:
    """How a picture is cut into tiles.

    Attributes:
        width_px: Columns of the picture.
        height_px: Rows of the picture.
        tile_px: Side of a tile, without what it shares with its neighbours.
        overlap_px: Pixels that it shares on each side.
        min_level: The smallest level there is.
        suffix: Of the tiles: "jpg", "jpeg" or "png".
    """

    width_px: int
    height_px: int
    tile_px: int
    overlap_px: int
    min_level: int
    suffix: str

    @property
    def max_level(self) -> int:
        """The level of the picture itself; level 0 is a single pixel."""
        return (max(self.width_px, self.height_px) - 1).bit_length()

    def level_size(self, level: int) -> tuple[int, int]:
        """Width and height of a level in its own pixels."""
        step = self.max_level - level
        return _halved(self.width_px, step), _halved(self.height_px, step)

    def has(self, level: int, column: int, row: int) -> bool:
        """Whether there is such a tile."""
        if not self.min_level <= level <= self.max_level:
            return False
        width_px, height_px = self.level_size(level)
        return column * self.tile_px < width_px and row * self.tile_px < height_px


class Tiles(Protocol):
    """A picture whose tiles can be read, by several threads at once."""

    @property
    def geometry(self) -> Geometry:
        """How it is cut."""

    def tile(self, level: int, column: int, row: int) -> bytes:
        """A tile that `geometry` has, as a file of its suffix.

        Raises:
            OSError, pyvips.Error, OutsideError: If it is missing, damaged, or led elsewhere.
        """


class TiffTiles:
    """Tiles out of a tiled TIFF with smaller copies of itself, decoded one by one.

    libvips decodes the tiles that are asked for and keeps two rows of them for each level.

    Args:
        path: The file.
        levels: As `levels_of` gives them.
        tile_px: Side of the tiles that are served.
    """

    def __init__(self, path: Path, levels: list[PageLevel], *, tile_px: int) -> None:
        images = {level.step: open_level(path, level, access="random") for level in levels}
        base = images[0]
        # Below the smallest copy, levels are made from it until one tile holds all of it.
        smallest_px = max(images[max(images)].width, images[max(images)].height)
        steps = max(images) + max(0, (smallest_px - 1) // tile_px).bit_length()
        whole = Geometry(base.width, base.height, tile_px, 0, 0, "jpg")
        self._geometry = Geometry(
            base.width, base.height, tile_px, _OVERLAP_PX, max(0, whole.max_level - steps), "jpg"
        )
        self._images = images

    @property
    def geometry(self) -> Geometry:
        """As in `Tiles`."""
        return self._geometry

    def tile(self, level: int, column: int, row: int) -> bytes:
        """As in `Tiles`: 8-bit JPEG, whatever the file has."""
        geometry = self._geometry
        step = geometry.max_level - level
        stored = max(each for each in self._images if each <= step)
        factor = 2 ** (step - stored)
        level_width_px, level_height_px = geometry.level_size(level)
        x0, width_px = _span(column, geometry, level_width_px)
        y0, height_px = _span(row, geometry, level_height_px)
        region = _region(
            self._images[stored], x0 * factor, y0 * factor, width_px * factor, height_px * factor
        )
        if factor > 1:
            region = region.shrink(factor, factor)
        data: bytes = _as_srgb(region).jpegsave_buffer(
            Q=_JPEG_QUALITY, subsample_mode="off", keep="none"
        )
        return data


class DeepZoomTiles:
    """Tiles of a Deep Zoom folder, handed on as they are.

    Args:
        path: The .dzi; its tiles lie in NAME_files beside it.

    Raises:
        RequestError: If it is damaged, or tiles of its first or last level are missing.
    """

    def __init__(self, path: Path) -> None:
        self._geometry = _dzi_geometry(path)
        self._folder = path.with_name(path.stem + "_files")
        self._real = os.path.realpath(self._folder)
        geometry = self._geometry
        width_px, height_px = geometry.level_size(geometry.max_level)
        last = ((width_px - 1) // geometry.tile_px, (height_px - 1) // geometry.tile_px)
        for level, column, row in ((0, 0, 0), (geometry.max_level, *last)):
            if not self._file(level, column, row).is_file():
                raise RequestError(
                    f"{path} is incomplete: {self._file(level, column, row)} is missing; take a "
                    "whole copy of the .dzi and its _files folder"
                )

    @property
    def geometry(self) -> Geometry:
        """As in `Tiles`."""
        return self._geometry

    def tile(self, level: int, column: int, row: int) -> bytes:
        """As in `Tiles`: the bytes of the file."""
        real = os.path.realpath(self._file(level, column, row))
        if os.path.commonpath([real, self._real]) != self._real:
            raise OutsideError(f"{real} is outside of {self._folder}")
        return Path(real).read_bytes()

    def _file(self, level: int, column: int, row: int) -> Path:
        return self._folder / str(level) / f"{column}_{row}.{self._geometry.suffix}"


def _span(index: int, geometry: Geometry, side_px: int) -> tuple[int, int]:
    """First pixel and length of a tile along one axis, with what it shares."""
    begin_px = max(0, index * geometry.tile_px - geometry.overlap_px)
    end_px = min(side_px, (index + 1) * geometry.tile_px + geometry.overlap_px)
    return begin_px, end_px - begin_px


def _region(image: pyvips.Image, x0: int, y0: int, width_px: int, height_px: int) -> pyvips.Image:
    """A rectangle; what is beyond the picture repeats its edge.

    Writers round sides of smaller copies down, Deep Zoom rounds them up: a column may be missing.
    """
    x0, y0 = min(x0, image.width - 1), min(y0, image.height - 1)
    inside = min(width_px, image.width - x0), min(height_px, image.height - y0)
    part = image.crop(x0, y0, *inside)
    if inside == (width_px, height_px):
        return part
    return part.embed(0, 0, width_px, height_px, extend="copy")


def _as_srgb(image: pyvips.Image) -> pyvips.Image:
    """Grey or RGB with 8 bits; transparency lies on white."""
    if image.hasalpha():
        image = image.flatten(background=65535 if image.format == "ushort" else 255)
    if image.format == "uchar" and image.bands in (1, 3):
        return image
    return image.colourspace("srgb").extract_band(0, n=3)


def _halved(side_px: int, step: int) -> int:
    return -(-side_px // (1 << step))


def _dzi_geometry(path: Path) -> Geometry:
    wrong = RequestError(f"{path} is no Deep Zoom description; take an undamaged copy")
    try:
        data = path.read_bytes()[: _MOST_DZI_BYTES + 1]
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}; check the name") from error
    # A document type could name entities that grow without end.
    if len(data) > _MOST_DZI_BYTES or b"<!" in data:
        raise wrong
    try:
        image = ElementTree.fromstring(data)
        size = next(each for each in image if each.tag.endswith("}Size") or each.tag == "Size")
        tile_px, overlap_px = (int(image.attrib[key]) for key in ("TileSize", "Overlap"))
        width_px, height_px = (int(size.attrib[key]) for key in ("Width", "Height"))
        suffix = image.attrib["Format"].lower()
    except (ElementTree.ParseError, StopIteration, KeyError, ValueError) as error:
        raise wrong from error
    sound = 0 < tile_px <= _MOST_TILE_PX and 0 <= overlap_px < tile_px
    sound = sound and 0 < width_px < 2**31 and 0 < height_px < 2**31
    if not sound or re.sub(r".*\}", "", image.tag) != "Image":
        raise wrong
    if suffix not in _DZI_SUFFIXES:
        known = ", ".join(_DZI_SUFFIXES)
        raise RequestError(f"{path} has tiles of format {suffix}; known are {known}")
    return Geometry(width_px, height_px, tile_px, overlap_px, min_level=0, suffix=suffix)
