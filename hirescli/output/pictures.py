"""Pictures that users give: looked at without decoding, and read into a spool in bounded memory.

What is read: JPEG, PNG, TIFF (classic and BigTIFF), WebP, AVIF and GIF with one picture in them.
What comes out is sRGB of 16 bits, upright:

- an embedded ICC profile is followed (relative colorimetric, black point compensated); one that
  is broken or of another kind of colour is ignored, as viewers do; CMYK without a profile is
  taken for a common offset press;
- floats are levels from 0 (black) to 1 (white), in the same transfer curve as integers, and
  clipped; others than that (0 to 255) are refused where they would come out white;
- transparency lies on white; channels that a TIFF does not call alpha are left out;
- of a TIFF with several pages the largest counts, the others being levels of a pyramid or
  thumbnails; several pages of one size, and animations, are refused.

A truncated file is refused, never read to a picture that is grey from its middle on. So is a
damaged one as far as its decoder can tell: formats without checksums (WebP, plain TIFF) hide
single wrong bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import NotFiniteError, RequestError
from hirescli.output.picture_header import (
    COLOUR_CHANNELS,
    MOST_PX,
    Header,
    load,
    naming,
    read_header,
)
from hirescli.output.spool import Bits, Spool, quantise
from hirescli.output.turning import TURNS, turn, turned_size
from hirescli.output.zstd_tiff import zstd_rows

if TYPE_CHECKING:
    import numpy as np
    import pyvips
    from numpy.typing import NDArray

_BAND_BYTES = 16 * 2**20
_DTYPES = {"uchar": "u1", "ushort": "u2", "float": "f4"}
_WHITE = {"uchar": 255, "ushort": 65535, "float": 1}


@dataclass(frozen=True)
class PictureFacts:
    """What a picture file says about itself, and its hash.

    Attributes:
        path: The file.
        width_px, height_px: Of the upright picture: after the rotation that it asks for.
        format: "jpeg", "png", "tiff", "webp", "gif" or "avif".
        bits: Per sample, as stored: 1, 2, 4, 8, 16 or 32.
        channels: Of a pixel, with alpha; a palette counts as the colours it holds.
        sha256: Of the file, in hexadecimal.
    """

    path: Path
    width_px: int
    height_px: int
    format: str
    bits: int
    channels: int
    sha256: str


def look(path: str | Path, *, most_px: int | None = None) -> PictureFacts:
    """Read what a picture says about itself; no pixel is decoded. It is read once, for its hash.

    Args:
        path: A local file.
        most_px: The most pixels allowed; None: `MOST_PX`, 2**30.

    Raises:
        RequestError: As `read_header`.
    """
    return _facts(_header(path, most_px))


def to_spool(
    path: str | Path, spool_path: Path, *, most_px: int | None = None, bits: Bits = 16
) -> PictureFacts:
    """Write a picture as an upright sRGB spool.

    A picture that is stored lying or mirrored takes the room of two spools while it is turned.

    Args:
        path: A local file.
        spool_path: The spool; an older file of that name is replaced.
        most_px: The most pixels allowed; None: `MOST_PX`, 2**30.
        bits: Of the spool; 8 bits of a picture come out as they are, or 257 times as large.

    Returns:
        As `look`.

    Raises:
        RequestError: As `look`, or if its pixels are damaged or no levels. No spool is left.
        RunError: If the disk has no room. No spool is left.
    """
    header = _header(path, most_px)
    facts = _facts(header)
    turns = header.orientation in TURNS
    stored = spool_path.with_name(spool_path.name + ".stored") if turns else spool_path
    try:
        with _created(stored, header.image.width, header.image.height, bits) as spool:
            _write(header, spool)
            if turns:
                with _created(spool_path, facts.width_px, facts.height_px, bits) as upright:
                    turn(spool, upright, header.orientation)
                    upright.flush()
    except BaseException:
        spool_path.unlink(missing_ok=True)
        raise
    finally:
        if turns:
            stored.unlink(missing_ok=True)
    return facts


def shrunk_spool(source: Path, target: Path, *, width_px: int, height_px: int) -> Path:
    """A spool that is no larger than a size, for `Resized`, which only enlarges.

    An axis that is too long is reduced by a Lanczos filter as wide as the reduction asks, so
    that nothing aliases; the other stays as it is.

    Args:
        source: A spool of 8 or 16 bits.
        target: Where the smaller spool goes, of 16 bits; an older file is replaced.
        width_px: The most columns.
        height_px: The most rows.

    Returns:
        `target`, or `source` itself where nothing is too long.

    Raises:
        RunError: If the disk has no room, or `source` is no spool.
    """
    with Spool.open(source) as spool:
        size = spool.width_px, spool.height_px
    wanted = min(size[0], width_px), min(size[1], height_px)
    if wanted == size:
        return source
    # gap=0: without the shortcut of averaging squares first.
    image = load(source, "tiff").resize(
        wanted[0] / size[0], vscale=wanted[1] / size[1], kernel="lanczos3", gap=0
    )
    assert (image.width, image.height) == wanted, "libvips rounds to the nearest size"
    try:
        with _created(target, *wanted) as smaller:
            for y0, rows in _bands(image):
                smaller.write_rows(y0, _levels(rows))
            smaller.flush()
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target


def _header(path: str | Path, most_px: int | None) -> Header:
    return read_header(Path(path), most_px=MOST_PX if most_px is None else most_px)


def _facts(header: Header) -> PictureFacts:
    image = header.image
    width_px, height_px = turned_size(image.width, image.height, header.orientation)
    with header.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return PictureFacts(
        path=header.path,
        width_px=width_px,
        height_px=height_px,
        format=header.format,
        bits=header.bits,
        channels=image.bands,
        sha256=sha256,
    )


def _created(path: Path, width_px: int, height_px: int, bits: Bits = 16) -> Spool:
    return Spool.create(path, width_px=width_px, height_px=height_px, bits=bits)


def _write(header: Header, spool: Spool) -> None:
    """Rows as stored, in the colours of a spool."""
    above_white = 0
    try:
        with naming(header.path):
            for y0, rows in _rows(header):
                if rows.dtype.kind == "f":
                    above_white += int((rows.max(axis=2) > 1).sum())
                levels = _levels(rows)
                spool.write_rows(y0, _eight_bits(levels) if spool.bits == 8 else levels)
    except NotFiniteError as error:
        raise RequestError(
            f"{header.path} holds NaN or infinity; save it with levels from 0 to 1"
        ) from error
    if above_white * 2 > spool.width_px * spool.height_px:
        raise RequestError(
            f"{header.path} has floats of which most are above 1, which is white; divide them by"
            " their white, or save it with 8 or 16 bits"
        )
    spool.flush()


def _rows(header: Header) -> Iterator[tuple[int, NDArray[Any]]]:
    """First row and rows as stored, in sRGB."""
    if header.zstd_page is not None:
        return zstd_rows(header.path, header.zstd_page)
    return _bands(_srgb(header.image, alpha=header.alpha))


def _bands(image: pyvips.Image) -> Iterator[tuple[int, NDArray[Any]]]:
    """First row and rows (n, width, channels), from top to bottom.

    By one region in this thread: a signal is answered between two bands.
    """
    import numpy as np
    import pyvips

    region = pyvips.Region.new(image)
    dtype = np.dtype(_DTYPES[image.format])
    row_bytes = image.width * image.bands * dtype.itemsize
    step = max(1, min(64, _BAND_BYTES // row_bytes))
    for y0 in range(0, image.height, step):
        n = min(step, image.height - y0)
        pixels = region.fetch(0, y0, image.width, n)
        yield y0, np.frombuffer(pixels, dtype=dtype).reshape(n, image.width, image.bands)


def _levels(rows: NDArray[Any]) -> NDArray[Any]:
    """Rows of 1 or 3 channels as (n, width, 3), uint16."""
    import numpy as np

    if rows.dtype.kind == "f":
        rows = quantise(rows, 16)
    elif rows.dtype == np.uint8:
        rows = rows.astype(np.uint16) * 257  # 255 * 257 is 65535
    return np.repeat(rows, 3, axis=2) if rows.shape[2] == 1 else rows


def _eight_bits(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Levels of 16 bits rounded to 8: 65535 is 257 * 255."""
    import numpy as np

    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _srgb(image: pyvips.Image, *, alpha: bool) -> pyvips.Image:
    """Grey or RGB of sRGB: 8 or 16 bits, or floats from 0 to 1."""
    colours = COLOUR_CHANNELS[image.interpretation]
    made = image.extract_band(0, n=colours) if image.bands > colours else image
    if colours == 4 or (image.get_typeof("icc-profile-data") and not has_own_profile(image)):
        made = _by_profile(made)
    if not alpha:
        return made
    opaque = image.extract_band(colours) / _WHITE[image.format]  # 0: nothing is there
    white = _WHITE[made.format]
    mixed = (made - white) * opaque + white
    if made.format == "float":
        return mixed
    # 16 bits: of 8, partly transparent colours would lose some.
    return (mixed * (65535 / white)).rint().cast("ushort")


def has_own_profile(image: pyvips.Image) -> bool:
    """Whether the embedded profile is the one that outputs carry, and nothing is to be changed."""
    import pyvips

    if not image.get_typeof("icc-profile-data"):
        return False
    own = pyvips.Operation.call("profile_load", "srgb")
    return bytes(image.get("icc-profile-data")) == bytes(own)


def _by_profile(image: pyvips.Image) -> pyvips.Image:
    """Through the embedded profile, if there is one, to sRGB of 16 bits."""
    if image.format == "float":  # profiles are followed with integers
        kind = {1: "grey16", 3: "rgb16", 4: "cmyk"}[image.bands]
        image = (image * 65535).cast("ushort").copy(interpretation=kind)
    return image.icc_transform(
        "srgb",
        embedded=True,
        intent="relative",
        black_point_compensation=True,
        depth=16,
        **({"input_profile": "cmyk"} if image.bands == 4 else {}),
    )
