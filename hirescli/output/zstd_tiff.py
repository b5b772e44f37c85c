"""A TIFF whose tiles are compressed by zstd, written and read: libvips from its wheel has none.

libvips makes the same file without compression beside the output; its tiles are then read,
compressed and written one by one, a few at a time, in order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffPage

_LEVEL = 6  # of zstd, 1 to 22
_MOST_THREADS = 8
_COMPRESSION, _DEFLATE, _ZSTD = 259, "deflate", 50000
_DIFFERENCES = 2  # Predictor
_ICC, _XMP, _UNDEFINED, _BYTE = 34675, 700, 7, 1


def save_zstd_tiff(save_plain: Callable[[Path], None], partial: Path) -> None:
    """Write a tiled TIFF with zstd.

    Args:
        save_plain: Writes the same picture, with its pyramid, as a TIFF without compression.
        partial: Where it goes.
    """
    # Where libvips's own temporary files go too, and with them.
    plain = Path(os.environ.get("TMPDIR", str(partial.parent))) / f"vips-{partial.name}"
    try:
        save_plain(plain)
        _compress(plain, partial)
    finally:
        plain.unlink(missing_ok=True)


def _compress(plain: Path, partial: Path) -> None:
    from tifffile import TiffFile, TiffPage, TiffWriter

    with TiffFile(plain) as source, ThreadPoolExecutor(_threads()) as pool:
        first = source.pages.first
        nested = bool(first.subifds)
        levels = list(first.pages or ()) if nested else list(source.pages)[1:]
        with TiffWriter(partial, bigtiff=True, byteorder="<") as writer:
            for number, page in enumerate([first, *levels]):
                assert isinstance(page, TiffPage), "every level has a directory of its own"
                said = _written_as(page, smaller=number > 0)
                if nested and not number:
                    said["subifds"] = len(levels)
                writer.write(_encoded(page, plain, pool), **said)
    _name_compression(partial)


def _written_as(page: TiffPage, *, smaller: bool) -> dict[str, Any]:
    """What `TiffWriter.write` takes of a page, so that it says what the plain one says."""
    tags = page.tags
    extra = [(_XMP, _BYTE, None, bytes(tags[_XMP].value), True)] if _XMP in tags else []
    return {
        "shape": page.shape,
        "dtype": page.dtype,
        "tile": (page.tilelength, page.tilewidth),
        "photometric": "rgb",
        # The tiles come compressed; tifffile knows this one without further packages.
        "compression": _DEFLATE,
        "predictor": _DIFFERENCES,
        "subfiletype": 1 if smaller else 0,
        "description": None if smaller or not page.description else page.description,
        "iccprofile": bytes(tags[_ICC].value) if _ICC in tags else None,
        "extratags": extra,
        "resolution": page.resolution,
        "resolutionunit": "INCH",
        "metadata": None,
        "software": False,
    }


def _encoded(page: TiffPage, plain: Path, pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """The tiles of a page in order, compressed; a few are under way at a time."""
    waiting: deque[Future[bytes]] = deque()
    shape = (page.tilelength, page.tilewidth, 3)
    with plain.open("rb") as file:
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            data = os.pread(file.fileno(), count, offset)
            waiting.append(pool.submit(_packed, data, shape, str(page.dtype)))
            if len(waiting) > 2 * _threads():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _packed(data: bytes, shape: tuple[int, int, int], dtype: str) -> bytes:
    """One tile: differences along its rows (TIFF's predictor 2), then zstd."""
    import numpy as np
    import zstandard

    pixels = np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<")).reshape(shape)
    differences = pixels.copy()
    differences[:, 1:] -= pixels[:, :-1]  # modulo 2**bits, as readers add
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    return bytes(packer.compress(differences.tobytes()))


def _name_compression(path: Path) -> None:
    """Say in every directory that the tiles are zstd's."""
    from tifffile import TiffFile, TiffPage

    with TiffFile(path, mode="r+") as tiff:
        for page in tiff.pages:
            assert isinstance(page, TiffPage), "read with their tags"
            for each in (page, *(page.pages or ())):
                assert isinstance(each, TiffPage), "read with their tags"
                each.tags[_COMPRESSION].overwrite(_ZSTD)


def _threads() -> int:
    return min(os.cpu_count() or 1, _MOST_THREADS)


def has_zstd(path: Path, page: int) -> bool:
    """Whether a page of a TIFF is compressed by zstd.

    Raises:
        RequestError: If it is, and its layout is not that of `save_zstd_tiff`.
    """
    from tifffile import TiffFile, TiffPage

    with TiffFile(path) as tiff:
        found = tiff.pages[page]
        if not isinstance(found, TiffPage) or int(found.compression) != _ZSTD:
            return False
        known = (
            found.is_tiled
            and found.shape[2:] == (3,)
            and int(found.predictor) in (1, _DIFFERENCES)
        )
        if not known or found.dtype not in ("uint8", "uint16") or int(found.planarconfig) != 1:
            raise RequestError(
                f"{path} has zstd inside in a layout that is not read here (tiles of RGB with 8 "
                "or 16 bits are); save it with deflate"
            )
        return True


def zstd_rows(path: Path, page: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """First row and rows (n, width, 3) of a page for which `has_zstd`, a row of tiles at a time.

    Raises:
        RequestError: If a tile is damaged.
    """
    import numpy as np
    from tifffile import TiffFile, TiffPage

    with TiffFile(path) as tiff, path.open("rb") as file:
        found = tiff.pages[page]
        assert isinstance(found, TiffPage), "looked at by `has_zstd`"
        across = -(-found.imagewidth // found.tilewidth)
        places = list(zip(found.dataoffsets, found.databytecounts, strict=True))
        for y0 in range(0, found.imagelength, found.tilelength):
            row, places = places[:across], places[across:]
            tiles = [
                _unpacked(os.pread(file.fileno(), count, offset), found, tiff.byteorder, path)
                for offset, count in row
            ]
            rows = np.concatenate(tiles, axis=1)
            yield y0, rows[: found.imagelength - y0, : found.imagewidth]


def _unpacked(data: bytes, page: TiffPage, byteorder: str, path: Path) -> NDArray[Any]:
    """One tile: (tile rows, tile columns, 3)."""
    import numpy as np
    import zstandard

    shape = (page.tilelength, page.tilewidth, 3)
    tile_bytes = page.tilelength * page.tilewidth * 3 * np.dtype(page.dtype).itemsize
    try:
        plain = zstandard.ZstdDecompressor().decompress(data, max_output_size=tile_bytes)
        dtype = np.dtype(f"{byteorder}u{np.dtype(page.dtype).itemsize}")
        stored = np.frombuffer(plain, dtype).reshape(shape)
    except (zstandard.ZstdError, ValueError) as error:
        raise RequestError(f"{path} is damaged ({error}); take an undamaged copy") from error
    tile = stored.astype(page.dtype)
    return (
        np.cumsum(tile, axis=1, dtype=tile.dtype) if int(page.predictor) == _DIFFERENCES else tile
    )
