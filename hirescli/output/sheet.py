"""Contact sheets: many pictures small on one, each with what it was made from below it.

A row of cells at a time is drawn and goes to a spool, so memory grows with the sheet's width
only. Of a pyramid the smallest level that is large enough is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hirescli.errors import RequestError, RunError
from hirescli.output.captions import Caption, Captions
from hirescli.output.metadata import inspect
from hirescli.output.picture_header import load, naming, read_header
from hirescli.output.pictures import to_spool
from hirescli.output.pyramid import PageLevel, levels_of, open_level
from hirescli.output.spool import Spool
from hirescli.output.zstd_tiff import has_zstd, zstd_rows

if TYPE_CHECKING:
    import numpy as np
    import pyvips
    from numpy.typing import NDArray
    from PIL import Image

SHEET_SUFFIXES = (".jpg", ".jpeg", ".png")
THUMB_RANGE_PX = (64, 2048)
_MOST_SIDE_PX = 65_500  # of JPEG, in libvips
_WIDTH_TO_HEIGHT = 1.5  # the shape that a sheet shall have
_GROUND = (250, 249, 247)
_SPACE = 12  # thumbs have this times the space between them
_QUALITY = 90
_MOST_HELD_PX = 2**24  # of a level with zstd


@dataclass(frozen=True)
class Entry:
    """One picture of a sheet.

    Attributes:
        path: The file.
        width_px, height_px: Of it.
        caption: What is written below.
    """

    path: Path
    width_px: int
    height_px: int
    caption: Caption


@dataclass(frozen=True)
class Layout:
    """Where cells are on a sheet.

    Attributes:
        count: Of pictures.
        columns: Of cells.
        cell_width_px: Of the widest thumb, and enough for its caption.
        cell_height_px: Of the highest thumb.
        caption_px: Height of the text below.
    """

    count: int
    columns: int
    cell_width_px: int
    cell_height_px: int
    caption_px: int

    @property
    def space_px(self) -> int:
        """Between cells, and twice at the edge."""
        return max(8, self.cell_width_px // _SPACE)

    @property
    def row_px(self) -> int:
        """Of one row of cells with the space below it."""
        return self.cell_height_px + self.caption_px + self.space_px

    @property
    def width_px(self) -> int:
        """Of the sheet."""
        return self.columns * self.cell_width_px + (self.columns + 3) * self.space_px

    @property
    def height_px(self) -> int:
        """Of the sheet."""
        return -(-self.count // self.columns) * self.row_px + 3 * self.space_px


def entry(path: Path) -> Entry:
    """Look at a picture for a sheet; no pixel is decoded.

    Raises:
        RequestError: If it is missing, truncated, damaged in its header, or no picture.
    """
    header = read_header(path)
    turned = header.orientation >= 5
    size = (header.image.width, header.image.height)
    width_px, height_px = reversed(size) if turned else size
    recipe = None if header.format == "gif" else inspect(path).recipe
    size_text = f"{width_px} \N{MULTIPLICATION SIGN} {height_px}"
    if recipe is None:
        return Entry(path, width_px, height_px, Caption(size_text, path.name))
    head = f"seed {recipe.get('seed', '?')} \N{MIDDLE DOT} {size_text}"
    return Entry(path, width_px, height_px, Caption(head, str(recipe.get("prompt") or path.name)))


def layout(entries: Sequence[Entry], *, columns: int | None, thumb_px: int) -> Layout:
    """Where the cells of a sheet are.

    Args:
        entries: At least one.
        columns: Of cells; None: so many that the sheet is about half wider than high.
        thumb_px: The longest side of a thumb.

    Raises:
        RequestError: If the sheet would be larger than JPEG can hold.
    """
    sides = [_shrunk(each, thumb_px) for each in entries]
    width_px, height_px = (max(side) for side in zip(*sides, strict=True))
    captions = Captions(thumb_px)
    width_px = max(width_px, min(thumb_px, captions.least_width_px))
    cell = width_px, height_px, captions.height_px
    some = range(1, len(entries) + 1) if columns is None else (min(columns, len(entries)),)
    made = min((Layout(len(entries), each, *cell) for each in some), key=_badness)
    if max(made.width_px, made.height_px) > _MOST_SIDE_PX:
        raise RequestError(
            f"a sheet of {len(entries)} pictures would have {made.width_px}x{made.height_px} px, "
            f"a side is at most {_MOST_SIDE_PX}; use a smaller --thumb-px, other --columns, or "
            "several sheets"
        )
    return made


def write_sheet(entries: Sequence[Entry], output: Path, where: Layout, *, thumb_px: int) -> None:
    """Draw a sheet; it stands under its name when it is whole.

    Args:
        entries: In the order of reading.
        output: A JPEG or PNG; an older file is replaced.
        where: The cells.
        thumb_px: The longest side of a thumb.

    Raises:
        RequestError: If a picture's pixels are damaged.
        RunError: If the disk is full, or the sheet cannot be written.
    """
    import pyvips

    spool_path = output.with_name(output.name + ".spool")
    unpacked = output.with_name(output.name + ".unpacked.spool")
    partial = output.with_name(output.name + ".partial")
    try:
        width_px, height_px = where.width_px, where.height_px
        with Spool.create(spool_path, width_px=width_px, height_px=height_px) as spool:
            for y0, band in _bands(entries, where, thumb_px, unpacked):
                spool.write_rows(y0, _pixels(band))
        _save(spool_path, partial, png=output.suffix.lower() == ".png")
        os.replace(partial, output)
    except (OSError, pyvips.Error) as error:
        why = getattr(error, "strerror", None) or str(error).strip()
        raise RunError(f"cannot write {output}: {why}") from error
    finally:
        spool_path.unlink(missing_ok=True)
        unpacked.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


def _bands(
    entries: Sequence[Entry], where: Layout, thumb_px: int, unpacked: Path
) -> Iterator[tuple[int, Image.Image]]:
    """First row and pixels of the upper edge, of each row of cells, and of the lower edge."""
    from PIL import Image

    edge_px = 2 * where.space_px
    yield 0, Image.new("RGB", (where.width_px, edge_px), _GROUND)
    captions, y0 = Captions(thumb_px), edge_px
    for start in range(0, len(entries), where.columns):
        band = Image.new("RGB", (where.width_px, where.row_px), _GROUND)
        for column, each in enumerate(entries[start : start + where.columns]):
            x0 = edge_px + column * (where.cell_width_px + where.space_px)
            thumb = _thumb(each.path, thumb_px, unpacked)
            # Side by side, on one line with the captions.
            band.paste(thumb, (x0, where.cell_height_px - thumb.height))
            captions.draw(band, each.caption, x0, where.cell_height_px, where.cell_width_px)
        yield y0, band
        y0 += where.row_px
    yield y0, Image.new("RGB", (where.width_px, where.height_px - y0), _GROUND)


def _thumb(path: Path, thumb_px: int, unpacked: Path) -> Image.Image:
    from PIL import Image

    header = read_header(path)
    image = header.image
    with naming(path):
        if header.zstd_page is not None:
            image = _without_zstd(path, thumb_px, unpacked)
        elif image.get("vips-loader").startswith("tiff"):
            level = [each for each in levels_of(path) if _holds(each, thumb_px)][-1:]
            image = open_level(path, level[0], access="sequential") if level else image
        # Not libvips's thumbnail of a file: that shows damaged ones without a word.
        image = image.thumbnail_image(
            thumb_px, height=thumb_px, size="down", export_profile="srgb", no_rotate=True
        )
        image = image.colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=255)
        image = image.extract_band(0, n=3).autorot()
        return Image.frombytes("RGB", (image.width, image.height), image.write_to_memory())


def _without_zstd(path: Path, thumb_px: int, unpacked: Path) -> pyvips.Image:
    """A small level of a TIFF with zstd, which libvips does not decode; else all by a spool."""
    import numpy as np
    import pyvips

    levels = [each for each in levels_of(path) if _holds(each, thumb_px) and each.subifd < 0]
    if levels and levels[-1].width_px * levels[-1].height_px <= _MOST_HELD_PX:
        page = levels[-1].page
        if has_zstd(path, page):
            return pyvips.Image.new_from_array(
                np.concatenate([rows for _, rows in zstd_rows(path, page)])
            )
    to_spool(path, unpacked, bits=8)
    return load(unpacked, "tiff")


def _badness(where: Layout) -> float:
    """How far a sheet is from the wanted shape, and its share of empty cells."""
    cells = -(-where.count // where.columns) * where.columns
    off = abs(math.log(where.width_px / where.height_px / _WIDTH_TO_HEIGHT))
    return off + 1 - where.count / cells


def _holds(level: PageLevel, thumb_px: int) -> bool:
    return level.step > 0 and max(level.width_px, level.height_px) >= thumb_px


def _shrunk(each: Entry, thumb_px: int) -> tuple[int, int]:
    """The size of its thumb; libvips never makes it larger."""
    scale = min(1.0, thumb_px / max(each.width_px, each.height_px))
    return math.ceil(each.width_px * scale), math.ceil(each.height_px * scale)


def _pixels(band: Image.Image) -> NDArray[np.uint8]:
    import numpy as np

    return np.asarray(band)


def _save(spool: Path, partial: Path, *, png: bool) -> None:
    import pyvips

    image = pyvips.Image.new_from_file(str(spool), access="sequential")
    with partial.open("wb") as file:
        target = pyvips.TargetCustom()
        target.on_write(file.write)
        if png:
            image.pngsave_target(target)
        else:
            image.jpegsave_target(target, Q=_QUALITY, subsample_mode="off", optimize_coding=True)
        file.flush()
        os.fsync(file.fileno())
