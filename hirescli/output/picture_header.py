"""What a picture file says about itself, and what is refused before a pixel is decoded."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import RequestError
from hirescli.output.containers import JPEG_START, PNG_START, read_jpeg, read_png
from hirescli.output.tiff_page import largest_page, strictness
from hirescli.output.zstd_tiff import has_zstd

if TYPE_CHECKING:
    import pyvips

# 32768 x 32768, a spool of 6.4 GB: four times the picture of 16384 x 16384. A file of
# a few hundred kB can claim 60,000 x 60,000.
MOST_PX = 2**30
# Some decoders hold the picture whole, at up to 6 bytes a pixel: 0.8 GB.
_MOST_HELD_PX = 2**27
_STARTS: dict[str, Callable[[bytes], bool]] = {
    "jpeg": lambda head: head.startswith(JPEG_START),
    "png": lambda head: head.startswith(PNG_START),
    "tiff": lambda head: head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "webp": lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP",
    "gif": lambda head: head.startswith((b"GIF87a", b"GIF89a")),
    # The brand comes first, or among those that the picture is compatible with.
    "avif": lambda head: head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]),
}
_HEAD_BYTES = 64
# What libvips and libtiff say of compressions that they were built without.
_NOT_READ = ("not supported", "unsupported", "not configured", "not implemented")
_LOADERS = {"avif": "heifload_source"}  # others: KIND + "load_source"
_KNOWN = "JPEG, PNG, TIFF, WebP, AVIF or GIF"
_WHOLE = ("webp", "gif", "avif")  # formats whose decoders hold the picture
# By the names that libvips gives to kinds of colour: how many channels are colour.
COLOUR_CHANNELS = {
    "b-w": 1, "grey16": 1, "srgb": 3, "rgb": 3, "rgb16": 3, "scrgb": 3, "cmyk": 4,
}  # fmt: skip
_BITS = {"uchar": 8, "ushort": 16, "float": 32}


@dataclass(frozen=True)
class Header:
    """An opened picture: nothing is decoded yet.

    Attributes:
        path: The file.
        format: "jpeg", "png", "tiff", "webp", "gif" or "avif".
        image: Gives rows as stored, from top to bottom, once.
        alpha: Whether the channel behind the colours is alpha.
        orientation: Of EXIF, 1 to 8.
        bits: Per sample, as stored.
        zstd_page: The page of a TIFF with zstd, which libvips from its wheel does not decode.
    """

    path: Path
    format: str
    image: pyvips.Image
    alpha: bool
    orientation: int
    bits: int
    zstd_page: int | None = None


def read_header(path: Path, *, most_px: int = MOST_PX) -> Header:
    """Open a picture.

    Args:
        path: A local file.
        most_px: The most pixels allowed.

    Raises:
        RequestError: If it is missing, a folder, empty, truncated, damaged in its header, no
            picture of a known format, animated, of unknown channels, or too large.
    """
    kind = _kind(path)
    page, alpha, zstd_page = 0, None, None
    if kind == "tiff":
        page, alpha = largest_page(path, most_held_px=_MOST_HELD_PX)
        zstd_page = page if has_zstd(path, page) else None
    elif kind == "png":
        read_png(path)  # for truncated files: its chunks are walked to the end mark
        _refuse_animated_png(path)
    elif kind == "jpeg":
        read_jpeg(path)
    with naming(path):
        image = load(path, kind, page=page)
    _check_size(path, kind, image, most_px)
    colours = _check_channels(path, image)
    orientation = int(_field(image, "orientation", 1))
    return Header(
        path=path,
        format=kind,
        image=image,
        alpha=image.bands > colours if alpha is None else alpha,
        orientation=orientation if 1 <= orientation <= 8 else 1,
        bits=int(_field(image, "bits-per-sample", _BITS[image.format])),
        zstd_page=zstd_page,
    )


def load(path: Path, kind: str, *, page: int = 0) -> pyvips.Image:
    """A picture that is decoded as its rows are asked for, from top to bottom.

    Args:
        path: A local file.
        kind: One of the formats of `Header`.
        page: Of a TIFF.

    Raises:
        pyvips.Error: If its header is damaged.
    """
    import pyvips

    # Nothing is asked of libvips twice, and its cache would hold files open.
    pyvips.cache_set_max(0)
    # Loaders by name: libvips has others, for SVG and PDF, that read much else.
    loader = getattr(pyvips.Image, _LOADERS.get(kind, f"{kind}load_source"))
    # libvips's own limit, 50 MB for a strip, is below what `largest_page` allows.
    options = {"page": page, "unlimited": True} if kind == "tiff" else {}
    # A source takes the name as it is; by name, "x[page=2]" would be a file with an option.
    source = pyvips.Source.new_from_file(os.fspath(path))
    # "warning": at lower levels half a picture is still a picture.
    fail_on = strictness(path, page) if kind == "tiff" else "warning"
    image: pyvips.Image = loader(source, access="sequential", fail_on=fail_on, **options)
    return image


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file is damaged, and how, where libvips fails in it."""
    import pyvips

    try:
        yield
    except pyvips.Error as error:
        lines = [line.strip() for line in str(error.detail).splitlines() if line.strip()]
        why = lines[0] if lines else error.message
        if any(words in str(error.detail).lower() for words in _NOT_READ):
            raise RequestError(
                f"{path} is stored in a way that is not read here ({why}); open it in an image"
                " editor and save it as a PNG, or as a TIFF with deflate"
            ) from error
        raise RequestError(
            f"{path} is damaged or truncated ({why}); take an undamaged copy, or open it in an"
            " image editor and save it again"
        ) from error


def _kind(path: Path) -> str:
    """The format by the first bytes; names say little."""
    if str(path).lower().startswith(("http:/", "https:/", "ftp:/")):
        raise RequestError(f"{path} is a web address; download it and name the local file")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would wait for its writer
            what = "a folder" if stat.S_ISDIR(mode) else "no plain file"
            raise RequestError(f"{path} is {what}; name a picture file ({_KNOWN})")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, RequestError):
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"picture {path} cannot be read: {why}; check the name") from error
    if not head:
        raise RequestError(f"picture {path} is empty (0 bytes); take a whole copy")
    for kind, fits in _STARTS.items():
        if fits(head):
            return kind
    raise RequestError(f"{path} is no {_KNOWN} picture; save it as one of these")


def _refuse_animated_png(path: Path) -> None:
    with path.open("rb") as file:
        # acTL stands before the first pixels, with texts and a profile at most before it.
        before_pixels = file.read(2**22).partition(b"IDAT")[0]
    _, found, after = before_pixels.partition(b"acTL")
    if found:
        raise _animated(path, int.from_bytes(after[:4]))


def _animated(path: Path, pictures: int) -> RequestError:
    return RequestError(
        f"{path} is animated ({pictures} pictures); save the one that you mean as a PNG"
    )


def _check_size(path: Path, kind: str, image: pyvips.Image, most_px: int) -> None:
    if kind != "tiff" and (pictures := int(_field(image, "n-pages", 1))) > 1:
        raise _animated(path, pictures)
    px = image.width * image.height
    size = f"{image.width}x{image.height} px ({px / 1e6:.1f} MP)"
    if px > most_px:
        side = math.isqrt(most_px)
        raise RequestError(
            f"{path} has {size}, above the limit of {most_px / 1e6:.1f} MP ({side}x{side} px);"
            " shrink it"
        )
    if px > _MOST_HELD_PX and (kind in _WHOLE or _field(image, "interlaced", 0)):
        what = kind if kind in _WHOLE else f"interlaced {kind}"
        raise RequestError(
            f"{path} has {size}; {what} pictures are decoded whole, which above"
            f" {_MOST_HELD_PX / 1e6:.0f} MP takes too much memory: save it as a TIFF"
        )


def _check_channels(path: Path, image: pyvips.Image) -> int:
    """How many channels are colour."""
    colours = COLOUR_CHANNELS.get(image.interpretation)
    if image.format not in _BITS:
        raise RequestError(
            f"{path} has samples of type {image.format}; save it with 8 or 16 bits or as floats"
        )
    if colours is None or image.bands < colours or (colours == 1 and image.bands > 2):
        raise RequestError(
            f"{path} has {image.bands} channels of kind {image.interpretation}; save it as"
            " grey, RGB or CMYK"
        )
    return colours


def _field(image: pyvips.Image, name: str, default: int) -> Any:
    return image.get(name) if image.get_typeof(name) else default
