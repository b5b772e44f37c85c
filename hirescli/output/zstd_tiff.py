"""A TIFF whose tiles are compressed by zstd, which libvips from its wheel cannot write.

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

if TYPE_CHECKING:
    from tifffile import TiffPage

_LEVEL = 6  # of zstd, 1 to 22
_MOST_THREADS = 8
_COMPRESSION, _DEFLATE, _ZSTD = 259, "deflate", 50000
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
        "predictor": 2,
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
    return bytes(zstandard.ZstdCompressor(level=_LEVEL).compress(differences.tobytes()))


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
