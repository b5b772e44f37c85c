"""Reading back what a picture says about itself: size, levels, recipe, A1111's text.

Headers are read by tifffile or by a walk over chunks, those of WebP and AVIF by libvips: Pillow
refuses to open what is above its limit against decompression bombs, and our own outputs are.
"""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import RequestError
from hirescli.output.containers import JPEG_START, PNG_START, read_jpeg, read_png, tiff_end
from hirescli.output.exif import read_user_comment
from hirescli.output.parameters import read_parameters
from hirescli.output.quiet import tifffile_silent
from hirescli.output.texts import RECIPE_KEY, embedded, parameters_in_xmp, recipe_in_xmp
from hirescli.output.tile_folder import TileFolder, read_tiles
from hirescli.recipe import read_recipe_file

if TYPE_CHECKING:
    from tifffile import TiffFile

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_XMP_TAG = 700
_HEAD_BYTES = 4096
_KNOWN = "TIFF, PNG, JPEG, WebP, AVIF, tiles"


@dataclass(frozen=True)
class ImageFacts:
    """What a file says about itself without its pixels being read.

    Attributes:
        format: "tiff", "png", "jpeg", "webp", "avif" or "tiles".
        bytes: Of the file, of tiles all together.
        levels: Levels of the pyramid, 1 without one.
        recipe: The embedded recipe as a fragment; None when there is none.
        parameters_text: The A1111 text; "" when there is none.
    """

    path: Path
    format: str
    width_px: int
    height_px: int
    bytes: int
    levels: int
    recipe: dict[str, Any] | None
    parameters_text: str = ""

    @property
    def parameters(self) -> dict[str, Any] | None:
        """What the A1111 text says, see `read_parameters`; None when it is none."""
        return read_parameters(self.parameters_text)


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe from an output or from a recipe written as JSON.

    Returns:
        A fragment for `Recipe.from_fragments`.

    Raises:
        RequestError: If the file is missing, damaged, or holds no recipe of ours.
    """
    if not path.is_dir():
        head = _head(path)
        if _kind(head) is None:
            if not _may_be_json(head):
                raise _unknown(path)
            return read_recipe_file(path)
    recipe = inspect(path).recipe
    if recipe is None:
        raise RequestError(
            f"{path} holds no recipe of hires (another program's picture, or made with"
            " --no-metadata); give its prompt and size as options"
        )
    return recipe


def is_picture(path: Path) -> bool:
    """Whether a path is a picture, or a folder, by its first bytes; else it may be a recipe.

    Raises:
        RequestError: If it is missing or empty.
    """
    return path.is_dir() or _kind(_head(path)) is not None


def inspect(path: Path) -> ImageFacts:
    """Read a picture's size and what it says about itself, without reading its pixels.

    Raises:
        RequestError: If the file is missing, truncated, or of no format of ours.
    """
    try:
        if path.is_dir():
            return _inspect_tiles(path)
        kind = _kind(_head(path))
        if kind is not None:
            return _INSPECT[kind](path)
    except RequestError:
        raise
    except Exception as error:  # damaged files: tifffile raises errors of many kinds
        raise RequestError(f"{path} is damaged ({error}); take an undamaged copy") from error
    raise _unknown(path)


def _unknown(path: Path) -> RequestError:
    return RequestError(f"{path} is no {_KNOWN} or recipe; give a file that hires made")


def _may_be_json(head: bytes) -> bool:
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    return not text or text.startswith(b"{")


def _kind(head: bytes) -> str | None:
    """The format by the first bytes; None: no picture of ours."""
    if head.startswith(_TIFF_STARTS):
        return "tiff"
    if head.startswith(PNG_START):
        return "png"
    if head.startswith(JPEG_START):
        return "jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp" and b"avif" in head[8:64]:
        return "avif"
    return "tiles" if b"schemas.microsoft.com/deepzoom" in head else None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}; check the name") from error
    if not head:
        raise RequestError(f"{path} is empty (0 bytes); take a whole copy")
    return head


def _inspect_tiff(path: Path) -> ImageFacts:
    from tifffile import TiffFile

    with tifffile_silent(), TiffFile(path) as tiff:
        if not len(tiff.pages):
            size_bytes = path.stat().st_size
            raise RequestError(
                f"{path} is truncated ({size_bytes} bytes): the directory that it points to is "
                "cut off; take a whole copy"
            )
        first = tiff.pages.first
        _check_whole(path, tiff_end(tiff))
        width_px, height_px = int(first.imagewidth), int(first.imagelength)
        xmp = first.tags.valueof(_XMP_TAG, b"")
        parameters = parameters_in_xmp(xmp) if isinstance(xmp, bytes) else ""
        texts, levels = [first.description], _levels(tiff)
        return _facts(path, "tiff", width_px, height_px, texts, parameters, levels=levels)


def _levels(tiff: TiffFile) -> int:
    """The first page and those that are marked as reduced (NewSubfileType, bit 0), or below it."""
    from tifffile import TiffPage

    later = [page for page in list(tiff.pages)[1:] if isinstance(page, TiffPage)]
    below = len(tiff.pages.first.subifds or ())
    return 1 + below + len([page for page in later if int(page.subfiletype) & 1])


def _inspect_png(path: Path) -> ImageFacts:
    width_px, height_px, texts = read_png(path)
    parameters, own = texts.get("parameters", ""), texts.get(RECIPE_KEY, "")
    # Older files have the key inside the text, too.
    wrapped = (
        own if not own or own.startswith(f'{{"{RECIPE_KEY}"') else f'{{"{RECIPE_KEY}": {own}}}'
    )
    recipes = [wrapped, *texts.values()]
    return _facts(path, "png", width_px, height_px, recipes, parameters)


def _inspect_jpeg(path: Path) -> ImageFacts:
    width_px, height_px, comments, exif = read_jpeg(path)
    return _facts(path, "jpeg", width_px, height_px, comments, read_user_comment(exif))


def _inspect_webp(path: Path) -> ImageFacts:
    with path.open("rb") as file:
        # "RIFF", and how many bytes follow: the rest of the file.
        _check_whole(path, 8 + struct.unpack("<4xI", file.read(8))[0])
    return _inspect_by_vips(path, "webp", "webpload_source")


def _inspect_avif(path: Path) -> ImageFacts:
    """An AVIF, whose boxes say how long they are."""
    size_bytes, end = path.stat().st_size, 0
    with path.open("rb") as file:
        while end < size_bytes:
            file.seek(end)
            head = file.read(16).ljust(16, b"\0")
            length = int.from_bytes(head[:4])
            length = int.from_bytes(head[8:16]) if length == 1 else length or size_bytes - end
            if length < 8:
                raise RequestError(
                    f"{path} is damaged: a box of {length} bytes; take a whole copy"
                )
            end += length
    _check_whole(path, end)
    return _inspect_by_vips(path, "avif", "heifload_source")


def _inspect_by_vips(path: Path, kind: str, loader: str) -> ImageFacts:
    import pyvips

    pyvips.cache_set_max(0)
    image = getattr(pyvips.Image, loader)(pyvips.Source.new_from_file(str(path)))
    xmp, exif = (
        image.get(name) if image.get_typeof(name) else b"" for name in ("xmp-data", "exif-data")
    )
    recipe = recipe_in_xmp(bytes(xmp))
    return _facts(path, kind, image.width, image.height, [recipe], read_user_comment(bytes(exif)))


def _inspect_tiles(path: Path) -> ImageFacts:
    found: TileFolder | None = read_tiles(path)
    if found is None:
        raise _unknown(path)
    recipe, parameters = embedded(found.sidecar, source=str(path)), found.parameters
    return ImageFacts(
        path, "tiles", found.width_px, found.height_px, found.bytes, found.levels, recipe,
        parameters,
    )  # fmt: skip


_INSPECT = {
    "tiff": _inspect_tiff,
    "png": _inspect_png,
    "jpeg": _inspect_jpeg,
    "webp": _inspect_webp,
    "avif": _inspect_avif,
    "tiles": _inspect_tiles,
}


def _check_whole(path: Path, end: int) -> None:
    size_bytes = path.stat().st_size
    if end > size_bytes:
        raise RequestError(f"{path} is truncated: {size_bytes} bytes of {end}; take a whole copy")


def _facts(
    path: Path,
    kind: str,
    width_px: int,
    height_px: int,
    texts: list[str],
    parameters: str = "",
    *,
    levels: int = 1,
) -> ImageFacts:
    recipes = [embedded(text, source=str(path)) for text in texts]
    return ImageFacts(
        path=path,
        format=kind,
        width_px=width_px,
        height_px=height_px,
        bytes=path.stat().st_size,
        levels=levels,
        recipe=next((recipe for recipe in recipes if recipe is not None), None),
        parameters_text=parameters,
    )
