"""The rows of a picture file, from top to bottom, as they are stored.

Shapes: bands are (n, width_px, 3), uint8 or uint16, sRGB-coded. Profiles are not followed: what
is measured is differences within a picture, and the program's own files are sRGB. Alpha is left
out. A turned picture is measured as it lies in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import RequestError
from hirescli.output.picture_header import COLOUR_CHANNELS, Header, naming, read_header
from hirescli.output.quiet import tifffile_silent
from hirescli.output.zstd_tiff import zstd_rows

if TYPE_CHECKING:
    import pyvips
    from numpy.typing import NDArray

_BAND_ROWS = 64
_DTYPES = {"uchar": "u1", "ushort": "u2"}
_TOP_16 = 65535
_TILE_FOLDERS = (".dzi", ".zoomify", ".iiif")


@dataclass(frozen=True)
class Picture:
    """A picture that can be read once.

    Attributes:
        path: The file.
        width_px, height_px: As stored.
        format: "jpeg", "png", "tiff", "webp" or "gif".
        bits: Of a sample: 8 or 16.
        tile_px: Width and height of the file's tiles, empty if it has none.
    """

    path: Path
    width_px: int
    height_px: int
    format: str
    bits: int
    tile_px: tuple[int, ...]
    _image: pyvips.Image
    _zstd_page: int | None

    def bands(self, rows: int = _BAND_ROWS) -> Iterator[NDArray[Any]]:
        """Bands from top to bottom, each of at most `rows` rows.

        Raises:
            RequestError: If the file is damaged somewhere in its pixels.
        """
        if self._zstd_page is None:
            yield from self._by_libvips(rows)
            return
        for _, held in zstd_rows(self.path, self._zstd_page):  # a row of tiles each
            for y in range(0, held.shape[0], rows):
                yield held[y : y + rows]

    def _by_libvips(self, rows: int) -> Iterator[NDArray[Any]]:
        import numpy as np
        import pyvips

        with naming(self.path):
            region = pyvips.Region.new(self._image)
            dtype = np.dtype(_DTYPES[self._image.format])
            for y0 in range(0, self.height_px, rows):
                n = min(rows, self.height_px - y0)
                pixels = np.frombuffer(region.fetch(0, y0, self.width_px, n), dtype=dtype)
                band = pixels.reshape(n, self.width_px, -1)
                yield np.repeat(band, 3, axis=2) if band.shape[2] == 1 else band


def open_picture(path: Path) -> Picture:
    """Look at a picture; no pixel is decoded yet.

    Raises:
        RequestError: If it is missing, foreign, truncated or too large, as
            `hirescli.output.picture_header.read_header` says, or many files of tiles.
    """
    if path.suffix.lower() in _TILE_FOLDERS and path.exists():
        raise RequestError(
            f"{path} holds tiles for browsers; inspect the TIFF, PNG or JPEG that it was"
            " exported from, or make one with --also"
        )
    header = read_header(path)
    image = _colours(header)
    return Picture(
        path=path,
        width_px=image.width,
        height_px=image.height,
        format=header.format,
        bits=8 if image.format == "uchar" else 16,
        tile_px=_tile_px(header),
        _image=image,
        _zstd_page=header.zstd_page,
    )


def _colours(header: Header) -> pyvips.Image:
    """Grey or RGB, of 8 or 16 bits."""
    image = header.image
    colours = COLOUR_CHANNELS[image.interpretation]
    if image.bands > colours:
        image = image.extract_band(0, n=colours)
    if colours == 4:
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=8)
    if image.format == "float":  # levels from 0 to 1
        image = (image * _TOP_16).rint().cast("ushort")
    return image


def _tile_px(header: Header) -> tuple[int, ...]:
    """Of the largest page, which is the picture."""
    if header.format != "tiff":
        return ()
    from tifffile import TiffFile, TiffPage

    try:
        with tifffile_silent(), TiffFile(header.path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, TiffPage)]
            page = max(pages, key=lambda page: page.imagewidth * page.imagelength)
            return (page.tilewidth, page.tilelength) if page.is_tiled else ()
    except Exception as error:  # tifffile raises errors of many kinds for damaged files
        raise RequestError(f"{header.path} is damaged ({error}); take a whole copy") from error
