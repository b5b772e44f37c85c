"""Where the levels of a pyramidal TIFF are, whoever wrote it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hirescli.errors import RequestError
from hirescli.output.quiet import tifffile_silent
from hirescli.output.tiff_page import largest_page, strictness

if TYPE_CHECKING:
    import pyvips

# Of a strip or tile that is decoded whole; as for pictures that are read into spools.
_MOST_HELD_PX = 2**27


@dataclass(frozen=True)
class PageLevel:
    """Where one level of a pyramid is in a TIFF.

    Attributes:
        step: It is 2**step times smaller than the picture.
        page: Index of its page, or of the page whose sub-image it is.
        subifd: Index among the sub-images of the page; -1: it is the page itself.
        width_px, height_px: Its size.
        tile_px: Side of its tiles; None: it has no square tiles.
    """

    step: int
    page: int
    subifd: int
    width_px: int
    height_px: int
    tile_px: int | None


def levels_of(path: Path) -> list[PageLevel]:
    """The levels of a TIFF, the picture itself first; it alone where there are no others.

    Smaller copies are found by their size: whole halvings of the picture's, up to a pixel of
    theirs, in tiles. Not all programs mark them as copies.

    Raises:
        RequestError: If the file is truncated or damaged, or holds several pictures of one size.
    """
    base, _ = largest_page(path, most_held_px=_MOST_HELD_PX)
    try:
        return _found(path, base)
    except Exception as error:  # tifffile raises errors of many kinds for damaged files
        raise RequestError(f"{path} is damaged ({error}); take an undamaged copy") from error


def open_level(
    path: Path, level: PageLevel, *, access: Literal["random", "sequential"]
) -> pyvips.Image:
    """A level that is decoded as its pixels are asked for.

    Raises:
        pyvips.Error: If its header is damaged.
    """
    import pyvips

    pyvips.cache_set_max(0)  # its cache would hold files open
    # A source takes the name as it is; by name, "x[page=2]" would be a file with an option.
    source = pyvips.Source.new_from_file(os.fspath(path))
    image: pyvips.Image = pyvips.Image.tiffload_source(
        source, page=level.page, subifd=level.subifd, access=access,
        fail_on=strictness(path, level.page), unlimited=True,
    )  # fmt: skip
    return image


def _found(path: Path, base: int) -> list[PageLevel]:
    from tifffile import TiffFile, TiffPage

    with tifffile_silent(), TiffFile(path) as tiff:
        pages = [page if isinstance(page, TiffPage) else page.aspage() for page in tiff.pages]
        picture = pages[base]
        subs = [page for page in picture.pages or [] if isinstance(page, TiffPage)]
        places = [(page, index, -1) for index, page in enumerate(pages) if index != base]
        places += [(page, base, index) for index, page in enumerate(subs)]
        found = {0: _level(0, base, -1, picture)}
        for page, index, subifd in places:
            step = _step(picture, page)
            if step is not None and step not in found and page.is_tiled:
                found[step] = _level(step, index, subifd, page)
    return [found[step] for step in sorted(found)]


def _level(step: int, index: int, subifd: int, page: Any) -> PageLevel:
    square = page.is_tiled and page.tilewidth == page.tilelength
    tile_px = int(page.tilewidth) if square else None
    return PageLevel(step, index, subifd, page.imagewidth, page.imagelength, tile_px)


def _step(picture: Any, page: Any) -> int | None:
    """How often a page halves the picture; None if it does not."""
    if not page.imagewidth or page.samplesperpixel != picture.samplesperpixel:
        return None
    step: int = round(picture.imagewidth / page.imagewidth).bit_length() - 1
    sides = ((picture.imagewidth, page.imagewidth), (picture.imagelength, page.imagelength))
    fits = all(abs(whole / 2**step - part) <= 1 for whole, part in sides)
    return step if step > 0 and fits else None
