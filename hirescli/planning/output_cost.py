"""What finished files take: room on the disk, and memory of encoders that hold the picture."""

from __future__ import annotations

from hirescli.recipe import Recipe

_CHANNELS = 3
# Largest output for a spool of 1: a pyramid adds 1/4 + 1/16 + ... = 1/3; noise hardly packs.
_PYRAMID = 4 / 3
# JPEG of plain noise by quality; above 85 colour is kept at full resolution. Measured on
# uniform noise: 0.25 at 85, 0.81 at 95, 1.37 at 100. WebP took less, AVIF as much.
_JPEG_PER_SPOOL = ((85, 0.5), (95, 1.0), (100, 2.0))
_LZW_PER_SPOOL = 1.4  # of noise; measured 1.37
# Bytes of memory for a pixel. Measured at 2048, 4096 and 8192 px a side: 7.3, 6.1, 5.4 for WebP;
# 37, 35, 34 for AVIF, and 33 at 16384.
_HELD_BYTES = {"webp": 8, "avif": 38}


def output_bytes(recipe: Recipe) -> int:
    """Largest size of the finished file, or of all files of tiles."""
    spool = recipe.width_px * recipe.height_px * _CHANNELS * recipe.bits // 8
    return int(spool * _levels(recipe) * _packed(recipe))


def written_bytes(recipe: Recipe) -> int:
    """Largest use of disk while it is written: zstd is made from a copy without compression."""
    spool = recipe.width_px * recipe.height_px * _CHANNELS * recipe.bits // 8
    plain = spool * _levels(recipe) if _kind(recipe) == "zstd" else 0
    return output_bytes(recipe) + int(plain)


def encoder_bytes(recipe: Recipe) -> int:
    """Memory of an encoder that holds the whole picture; 0 of those that work in bands."""
    return recipe.width_px * recipe.height_px * _HELD_BYTES.get(recipe.format, 0)


def _levels(recipe: Recipe) -> float:
    pyramid = recipe.format == "tiles" or (recipe.format == "tiff" and recipe.pyramid != "none")
    return _PYRAMID if pyramid else 1.0


def _packed(recipe: Recipe) -> float:
    kind = _kind(recipe)
    if kind == "lzw":
        return _LZW_PER_SPOOL
    if kind not in ("jpeg", "webp", "avif"):
        return 1.0
    jpeg = next(ratio for quality, ratio in _JPEG_PER_SPOOL if recipe.quality <= quality)
    # Tiles inside a TIFF carry tables and are padded.
    return jpeg if recipe.format != "tiff" else max(1.0, jpeg)


def _kind(recipe: Recipe) -> str:
    """What packs the pixels."""
    inside = {"tiff": recipe.compression, "tiles": recipe.tile_format, "print": "lzw"}
    return inside.get(recipe.format, recipe.format)
