"""One function per format: from an image of libvips to a file, or a folder of tiles.

All of them write the same bytes at any number of threads.
"""

from __future__ import annotations

import json
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
from hirescli.output.exif import user_comment
from hirescli.output.inserting import overwritten, save_inserting
from hirescli.output.texts import RECIPE_KEY, Texts
from hirescli.output.tile_folder import SIDECAR
from hirescli.output.zstd_tiff import save_zstd_tiff

if TYPE_CHECKING:
    import pyvips

    from hirescli.recipe import Recipe

_MM_PER_INCH = 25.4
_EXIF_LIMIT_BYTES = 60_000  # libexif saves no more than 64 KiB
# Of AV1, 0 to 9. At 4, 4096x4096 px took 36 s in place of 6 and was no smaller (measured).
_AVIF_EFFORT = 2
_AVIF_THREADS = 4  # the encoder's bytes depend on their number
_TILES = "tiles"  # the name under which libvips writes a folder


def labelled(spool_path: Path, recipe: Recipe) -> pyvips.Image:
    """The spool as libvips reads it, in the recipe's bits, with colour profile and resolution."""
    import pyvips

    image = pyvips.Image.new_from_file(str(spool_path), access="sequential")
    if recipe.bits == 8 and image.format == "ushort":
        # 65535 is 257 * 255. Nothing lies half way between two levels: 257 is odd.
        image = (image / 257).rint().cast("uchar").copy(interpretation="srgb")
    # The profile built into libvips is a constant: lcms's own carries the time of day.
    profile = pyvips.Operation.call("profile_load", "srgb")
    image = image.copy(xres=recipe.dpi / _MM_PER_INCH, yres=recipe.dpi / _MM_PER_INCH)
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image


def _save_tiff(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    _describe_tiff(image, texts)
    # libvips reads no tile that is more than twice as large as its picture; TIFF's are multiples
    # of 16.
    covering_px = -(-max(image.width, image.height) // 16) * 16
    tile_px = min(recipe.tile_px, covering_px)
    zstd = recipe.compression == "zstd"
    options = {
        "tile": True,
        "tile_width": tile_px,
        "tile_height": tile_px,
        "pyramid": recipe.pyramid != "none",
        "subifd": recipe.pyramid == "subifd",
        "bigtiff": True,
        "compression": "none" if zstd else recipe.compression,
        "predictor": "horizontal" if recipe.compression in ("deflate", "lzw") else "none",
        "Q": recipe.quality,
        "resunit": "inch",
    }
    if zstd:
        save_zstd_tiff(lambda path: image.tiffsave(str(path), **options), partial)
    else:
        image.tiffsave(str(partial), **options)


def _save_print(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    """What print shops ask for: classic TIFF in strips, LZW, RGB of 8 bits, no pyramid."""
    _describe_tiff(image, texts)
    image.tiffsave(
        str(partial), compression="lzw", predictor="horizontal", bigtiff=False, resunit="inch"
    )


def _describe_tiff(image: pyvips.Image, texts: Texts | None) -> None:
    import pyvips

    if texts and texts.recipe:
        image.set_type(pyvips.GValue.gstr_type, "image-description", texts.recipe)
    if texts and (xmp := texts.xmp_with_parameters):
        image.set_type(pyvips.GValue.blob_type, "xmp-data", xmp)


def _save_png(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    chunks = b""
    if texts:
        fields = _fields(texts) | {"recipe": texts.recipe_itself}
        chunks = png_chunks(**fields, recipe_key=RECIPE_KEY)
    save_inserting(image, partial, ".png", chunks, png_place)


def _save_jpeg(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    segments = jpeg_segments(**_fields(texts), dpi=recipe.dpi) if texts else b""
    head = jpeg_head(dpi=recipe.dpi) + segments
    save_inserting(image, partial, ".jpg", head, jpeg_place, Q=recipe.quality)


def _save_webp(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    _save_whole(image, partial, ".webp", texts, Q=recipe.quality)


def _save_avif(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    import pyvips

    pyvips.concurrency_set(_AVIF_THREADS)
    options = {"compression": "av1", "effort": _AVIF_EFFORT}
    _save_whole(image, partial, ".avif", texts, Q=recipe.quality, **options)


def _save_whole(
    image: pyvips.Image, partial: Path, suffix: str, texts: Texts | None, **options: Any
) -> None:
    """WebP and AVIF, whose encoders hold the picture."""
    import pyvips

    mark, comment = "", b""
    if texts:
        if xmp := texts.xmp_with_recipe:  # libvips fails on an empty one
            image.set_type(pyvips.GValue.blob_type, "xmp-data", xmp)
        comment = user_comment(texts.parameters)
        if texts.parameters and len(comment) <= _EXIF_LIMIT_BYTES:
            # libvips writes comments in ASCII only: a mark keeps the place of ours.
            mark = "hires.mark.".ljust(len(comment) - len("ASCII\0\0\0"), ".")
            image.set_type(pyvips.GValue.gstr_type, "exif-ifd2-UserComment", mark)
    with partial.open("wb") as file:
        target = pyvips.Target.new_to_descriptor(file.fileno())
        image.write_to_target(target, suffix, keep="icc|exif|xmp", **options)
    if mark:
        overwritten(partial, b"ASCII\0\0\0" + mark.encode(), comment)


def _save_tiles(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    partial.mkdir()
    name = partial.name.removesuffix(".partial")
    options = f"[Q={recipe.quality}]" if recipe.tile_format == "jpeg" else ""
    image.dzsave(
        str(partial / _TILES),
        layout=recipe.tile_layout,
        suffix={"jpeg": ".jpg", "png": ".png"}[recipe.tile_format] + options,
        tile_size=recipe.tile_px,
        overlap=0,
        keep="icc",
    )
    folder = partial / name
    if recipe.tile_layout == "dz":
        (partial / f"{_TILES}.dzi").rename(folder)
        folder = partial / (Path(name).stem + "_files")
        (partial / f"{_TILES}_files").rename(folder)
    else:
        (partial / _TILES).rename(folder)
    for stray in partial.rglob("vips-properties.xml"):  # holds the date
        stray.unlink()
    if recipe.tile_layout == "iiif3":
        _complete_iiif(folder, name, recipe)
    if texts:
        (folder / SIDECAR).write_text(texts.sidecar, encoding="utf-8")


def _complete_iiif(folder: Path, name: str, recipe: Recipe) -> None:
    """Make a folder of tiles what IIIF 3 asks for, where libvips leaves it.

    The folder's name becomes its address, so that a page beside it finds the tiles. Viewers ask
    for JPEG unless another format is said, and for a picture that is a single tile as "max".
    """
    info = folder / "info.json"
    said = json.loads(info.read_text(encoding="utf-8")) | {"id": name}
    if recipe.tile_format != "jpeg":
        said |= {"preferredFormats": [recipe.tile_format], "extraFormats": [recipe.tile_format]}
    info.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    single = folder / "full" / f"{said['width']},{said['height']}"
    if single.is_dir():
        single.rename(folder / "full" / "max")


SAVERS: dict[str, Callable[[pyvips.Image, Path, Recipe, Texts | None], None]] = {
    "tiff": _save_tiff,
    "png": _save_png,
    "jpeg": _save_jpeg,
    "webp": _save_webp,
    "avif": _save_avif,
    "tiles": _save_tiles,
    "print": _save_print,
}


def _fields(texts: Texts) -> dict[str, Any]:
    return {"recipe": texts.recipe, "parameters": texts.parameters, "xmp": texts.xmp}
