"""One function per format: from an image of libvips to the bytes of a file.

All of them write the same bytes at any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.output.containers import (
    jpeg_head,
    jpeg_place,
    jpeg_segments,
    png_chunks,
    png_place,
)
from hirescli.output.metadata import RECIPE_KEY, Texts

if TYPE_CHECKING:
    import pyvips

    from hirescli.recipe import Recipe

_MM_PER_INCH = 25.4
# From the first bytes of a file to the range that gives way to ours; None: too few bytes yet.
Place = Callable[[bytes], tuple[int, int] | None]


def labelled(spool_path: Path, recipe: Recipe) -> pyvips.Image:
    """The spool as libvips reads it, with colour profile and resolution."""
    import pyvips

    image = pyvips.Image.new_from_file(str(spool_path), access="sequential")
    # The profile built into libvips is a constant: lcms's own carries the time of day.
    profile = pyvips.Operation.call("profile_load", "srgb")
    image = image.copy(xres=recipe.dpi / _MM_PER_INCH, yres=recipe.dpi / _MM_PER_INCH)
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image


def _save_tiff(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    import pyvips

    if texts:
        image.set_type(pyvips.GValue.gstr_type, "image-description", texts.recipe)
        image.set_type(pyvips.GValue.blob_type, "xmp-data", texts.xmp)
    # libvips reads no tile that is more than twice as large as its picture; TIFF's are multiples
    # of 16.
    covering_px = -(-max(image.width, image.height) // 16) * 16
    tile_px = min(recipe.tile_px, covering_px)
    lossless = recipe.compression in ("deflate", "lzw")
    image.tiffsave(
        str(partial),
        tile=True,
        tile_width=tile_px,
        tile_height=tile_px,
        pyramid=True,  # as pages: OpenSlide sees one level only where they are SubIFDs
        bigtiff=True,
        compression=recipe.compression,
        predictor="horizontal" if lossless else "none",
        Q=recipe.quality,
        resunit="inch",
    )


def _save_png(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    chunks = png_chunks(**_fields(texts), recipe_key=RECIPE_KEY) if texts else b""
    _save_stream(image, partial, ".png", chunks, png_place)


def _save_jpeg(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    segments = jpeg_segments(**_fields(texts), dpi=recipe.dpi) if texts else b""
    head = jpeg_head(dpi=recipe.dpi) + segments
    _save_stream(image, partial, ".jpg", head, jpeg_place, Q=recipe.quality)


SAVERS: dict[str, Callable[[pyvips.Image, Path, Recipe, Texts | None], None]] = {
    "tiff": _save_tiff,
    "png": _save_png,
    "jpeg": _save_jpeg,
}


def _fields(texts: Texts) -> dict[str, Any]:
    return {"recipe": texts.recipe, "parameters": texts.parameters, "xmp": texts.xmp}


def _save_stream(
    image: pyvips.Image,
    partial: Path,
    suffix: str,
    insert: bytes,
    place: Place,
    **options: Any,
) -> None:
    import pyvips

    with partial.open("wb") as file:
        writer = _InsertingWriter(file.write, insert, place)
        target = pyvips.TargetCustom()
        target.on_write(writer.write)
        try:
            image.write_to_target(target, suffix, keep="icc", **options)
        finally:
            if writer.error:  # the cause; libvips only knows that writing failed
                raise writer.error
        assert writer.inserted, "the file ended before the place of its texts"


class _InsertingWriter:
    """Passes a stream on and puts bytes in at one place near its start."""

    def __init__(self, write: Callable[[bytes], int], insert: bytes, place: Place) -> None:
        self.error: OSError | None = None
        self.inserted = False
        self._write = write
        self._insert = insert
        self._place = place
        self._head = b""

    def write(self, data: bytes) -> int:
        """Take the next bytes; -1 tells libvips to stop (an exception cannot cross it)."""
        try:
            self._write(bytes(data) if self.inserted else self._with_insert(bytes(data)))
        except OSError as error:
            self.error = error
            return -1
        return len(data)

    def _with_insert(self, data: bytes) -> bytes:
        self._head += data
        place = self._place(self._head)
        if place is None:
            return b""
        self.inserted = True
        return self._head[: place[0]] + self._insert + self._head[place[1] :]
