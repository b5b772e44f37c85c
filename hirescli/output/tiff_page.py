"""Which page of a TIFF is the picture, and whether it can be read in parts. No pixel is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hirescli.errors import RequestError
from hirescli.output.containers import tiff_end, tiff_in_order
from hirescli.output.quiet import tifffile_silent
from hirescli.units import format_bytes

if TYPE_CHECKING:
    from tifffile import TiffPage

# NewSubfileType: bit 0 a smaller copy, bit 2 a transparency mask.
_NO_PICTURE = 1 | 4
_ALPHA = {1, 2}  # ExtraSamples: associated and unassociated alpha; 0 is anything else
# Compressions of which libvips reads single rows of a strip: none, LZW, deflate (two codes),
# PackBits. Strips of others are decoded whole.
_BY_ROWS = {1, 5, 8, 32946, 32773}
_UNPACKED = 1
_MOST_PACKED_BYTES = 2**29
_SEPARATE = 2  # PlanarConfiguration


def largest_page(path: Path, *, most_held_px: int) -> tuple[int, bool]:
    """The index of the page with the picture, and whether its first extra channel is alpha.

    Args:
        path: A TIFF.
        most_held_px: The most pixels of a strip or tile that is decoded whole.

    Raises:
        RequestError: If the file is truncated or damaged, holds several pictures of one size,
            or strips that are too large.
    """
    from tifffile import TiffFile, TiffPage

    try:
        with tifffile_silent(), TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, TiffPage)]
            if not pages:
                raise RequestError(f"{path} is truncated: it has no pages; take a whole copy")
            end, size_bytes = tiff_end(tiff), path.stat().st_size
    except RequestError:
        raise
    except Exception as error:  # tifffile raises errors of many kinds for damaged files
        raise RequestError(f"{path} is damaged ({error}); take an undamaged copy") from error
    if end > size_bytes:
        raise RequestError(f"{path} is truncated: {size_bytes} bytes of {end}; take a whole copy")
    index = max(range(len(pages)), key=lambda i: _px(pages[i]))
    page = pages[index]
    others = [p for p in pages if _px(p) == _px(page) and not int(p.subfiletype) & _NO_PICTURE]
    if len(others) > 1:
        size = f"{page.imagewidth}x{page.imagelength} px"
        raise RequestError(
            f"{path} has {len(others)} pages of {size}; save the one that you mean by itself"
        )
    _check_strips(path, page, most_held_px)
    extras = tuple(int(extra) for extra in page.extrasamples)
    return index, bool(extras) and extras[0] in _ALPHA


def strictness(path: Path, page: int) -> str:
    """At what libvips shall refuse a page of a TIFF: warnings, which tell of damaged tiles.

    It also warns, and then reads no strips, where tags stand twice or out of order, as the
    descriptions that tifffile writes do; there it is asked for errors, which strips tell of.
    """
    from tifffile import TiffFile, TiffPage

    with tifffile_silent(), TiffFile(path) as tiff:
        found = tiff.pages[page]
        tiled = isinstance(found, TiffPage) and found.is_tiled
        return "warning" if tiled or tiff_in_order(tiff) else "error"


def _px(page: TiffPage) -> int:
    return page.imagewidth * page.imagelength


def _check_strips(path: Path, page: TiffPage, most_held_px: int) -> None:
    """Refuse strips and tiles that take too much memory, packed (in bytes) or decoded."""
    packed_bytes = 0 if int(page.compression) == _UNPACKED else max(page.databytecounts)
    if page.is_tiled:
        held_px = page.tilewidth * page.tilelength
    elif int(page.compression) in _BY_ROWS and int(page.planarconfig) != _SEPARATE:
        held_px = 0
    else:
        held_px = min(page.rowsperstrip, page.imagelength) * page.imagewidth
    if held_px > most_held_px or packed_bytes > _MOST_PACKED_BYTES:
        raise RequestError(
            f"{path} has strips or tiles of up to {held_px / 1e6:.0f} MP and"
            f" {format_bytes(packed_bytes)}, which are read whole; save it with parts below"
            f" {most_held_px / 1e6:.0f} MP and {format_bytes(_MOST_PACKED_BYTES)}"
        )
