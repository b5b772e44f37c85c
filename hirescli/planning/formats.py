"""What each output format can hold, and which one a file name asks for."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from hirescli.errors import RequestError
from hirescli.recipe import Recipe
from hirescli.units import format_bytes

FormatName = Literal["tiff", "png", "jpeg", "webp", "avif", "tiles", "print"]
_SLUG_BYTES = 60
_HASH_DIGITS = 8


@dataclass(frozen=True)
class Format:
    """One image format.

    Attributes:
        name: As in a recipe.
        suffixes: Lower case, the usual one first.
        max_side_px: Longest side that files or libvips can hold.
        takes: Choices of a recipe that say something in it, among `_CHOICES`.
        max_bytes: Most bytes of pixels, None without a limit that matters.
        bits: Bits of a sample that it holds.
        also_named: Suffixes that mean another format unless this one is asked for in words.
    """

    name: str
    suffixes: tuple[str, ...]
    max_side_px: int
    takes: tuple[str, ...] = ()
    max_bytes: int | None = None
    bits: tuple[int, ...] = (8,)
    also_named: tuple[str, ...] = ()


# Choices that say something in some formats only, and in which.
_CHOICES = {
    "compression": "tiff",
    "pyramid": "tiff",
    "tile_px": "tiff and tiles",
    "tile_layout": "tiles",
    "tile_format": "tiles",
    "quality": "jpeg, webp, avif, or tiff and tiles with jpeg inside,",
}
_ANY_SIDE_PX = 2**31 - 1
FORMATS = {
    fmt.name: fmt
    for fmt in (
        # BigTIFF: no limit of 4 GB.
        Format(
            "tiff", (".tif", ".tiff"), _ANY_SIDE_PX, ("compression", "pyramid", "tile_px"),
            bits=(8, 16),
        ),
        Format("png", (".png",), _ANY_SIDE_PX, bits=(8, 16)),
        # libvips' limit; the format's is 65,535.
        Format("jpeg", (".jpg", ".jpeg"), 65_500, ("quality",)),
        Format("webp", (".webp",), 16_383, ("quality",)),
        Format("avif", (".avif",), 16_384, ("quality",)),
        Format(
            "tiles", (".dzi", ".zoomify", ".iiif"), _ANY_SIDE_PX,
            ("tile_px", "tile_layout", "tile_format"), bits=(8, 16),
        ),
        # Classic TIFF ends at 4 GiB, and LZW makes noise 1.37 times as large (measured).
        Format(
            "print", (".print.tif", ".print.tiff"), _ANY_SIDE_PX, max_bytes=3 * 10**9,
            also_named=(".tif", ".tiff"),
        ),
    )
}  # fmt: skip
DEFAULT_FORMAT: FormatName = "tiff"
_LAYOUTS = {".dzi": "dz", ".zoomify": "zoomify", ".iiif": "iiif3"}
_FOLDERS = (".zoomify", ".iiif")


def format_for(path: Path | None, stated: str | None = None) -> FormatName:
    """The format that an output name and a stated format agree on.

    Args:
        path: The output, or None when its name is still open.
        stated: A format given in words, or None.

    Raises:
        RequestError: If either is unknown, or both disagree.
    """
    return cast(FormatName, _chosen(path, stated).name)


def format_on_paper(path: Path | None) -> FormatName | None:
    """The format that a size on paper asks for where none is given in words.

    Returns:
        "print" for a name that is still open or a TIFF's, else None: the suffix says it.
    """
    may = path is None or path.name.lower().endswith(FORMATS["print"].also_named)
    return "print" if may else None


def layout_for(path: Path | None, stated: str | None = None) -> str | None:
    """The layout of tiles that an output name and a stated layout agree on; None: nobody says.

    Raises:
        RequestError: If both disagree.
    """
    named = None if path is None else _LAYOUTS.get(path.suffix.lower())
    if named and stated and named != stated:
        suffix = next((s for s, layout in _LAYOUTS.items() if layout == stated), "another name")
        assert path is not None
        raise RequestError(
            f'output "{path.name}" is in the layout {named} by its suffix, but --tile-layout '
            f"says {stated}; name it {join_name(split_name(path)[0], suffix)}"
        )
    return stated or named


def split_name(path: Path) -> tuple[str, str]:
    """The name without its suffix, and this: ".print.tif" is one; of unknown ones the last."""
    name = path.name.lower()
    known = {suffix for fmt in FORMATS.values() for suffix in fmt.suffixes}
    for suffix in sorted(known, key=len, reverse=True):
        if name.endswith(suffix) and name != suffix:
            return path.name[: -len(suffix)], path.name[-len(suffix) :]
    return path.stem, path.suffix


def join_name(stem: str, suffix: str) -> str:
    """A name whose suffix is this one: "a.print" and ".tif" are not put together to another."""
    while (split := split_name(Path(stem + suffix)))[1] != suffix and split[1].endswith(suffix):
        stem = split[0]
    return stem + suffix


def parts(output: Path) -> tuple[Path, ...]:
    """The files and folders that an output consists of; that of its own name is the last."""
    if output.suffix.lower() == ".dzi":
        return output.with_name(output.stem + "_files"), output
    return (output,)


def is_folder(output: Path) -> bool:
    """Whether an output is a folder by its name."""
    return output.suffix.lower() in _FOLDERS


def check_held(path: Path | None, stated: str | None, width_px: int, height_px: int) -> None:
    """Refuse a format that cannot hold the size.

    Raises:
        RequestError: As `format_for` and `check_format`.
    """
    check_format(_chosen(path, stated).name, width_px, height_px)


def _chosen(path: Path | None, stated: str | None) -> Format:
    by_words = _named(stated) if stated is not None else None
    if path is None:
        return by_words or FORMATS[DEFAULT_FORMAT]
    name = path.name.lower()
    if by_words and name.endswith(by_words.also_named):
        return by_words
    by_suffix = _by_suffix(path)
    if by_words and by_words != by_suffix:
        suffix = by_words.also_named[:1] or by_words.suffixes
        raise RequestError(
            f'output "{path.name}" is {by_suffix.name} by its suffix, but the format asked for '
            f"is {by_words.name}; name it {join_name(split_name(path)[0], suffix[0])}"
        )
    return by_suffix


def with_output(recipe: Recipe, output: Path | None) -> Recipe:
    """The recipe with the format, and the layout of tiles, that the output's suffix asks for.

    Raises:
        RequestError: As `format_for` and `layout_for`; others than the default must agree.
    """
    stated = recipe.format if recipe.format != DEFAULT_FORMAT else None
    said: dict[str, Any] = {"format": format_for(output, stated)}
    if said["format"] == "tiles":
        usual = recipe.tile_layout == Recipe.model_fields["tile_layout"].default
        said["tile_layout"] = layout_for(output, None if usual else recipe.tile_layout) or "dz"
    return recipe.model_copy(update=said)


def check_format(name: str, width_px: int, height_px: int) -> None:
    """Refuse a format that cannot hold the size.

    Raises:
        RequestError: With the size, the limit and the formats that can.
    """
    fmt = _named(name)
    longest_px = max(width_px, height_px)
    if longest_px > fmt.max_side_px:
        can = [f.name for f in FORMATS.values() if f.max_side_px >= longest_px]
        raise RequestError(
            f"{fmt.name} cannot hold {width_px}x{height_px} px: a side is at most "
            f"{fmt.max_side_px} px; use {' or '.join(can)}"
        )
    raw_bytes = width_px * height_px * 3
    if fmt.max_bytes is not None and raw_bytes > fmt.max_bytes:
        raise RequestError(
            f"{fmt.name} cannot hold {width_px}x{height_px} px: {format_bytes(raw_bytes)} of "
            f"pixels, at most {format_bytes(fmt.max_bytes)} are safe in a classic TIFF; use tiff "
            "or png, or a lower resolution"
        )


def check_options(recipe: Recipe) -> None:
    """Refuse choices that would have no effect in the recipe's format, or that it cannot hold.

    Raises:
        RequestError: Naming each such choice and the format it belongs to.
    """
    faults = [
        f"{key} {getattr(recipe, key)} is for {_CHOICES[key]} only"
        for key in without_effect(recipe.model_dump(include={*_CHOICES, "format"}))
        if getattr(recipe, key) != Recipe.model_fields[key].default
    ]
    if faults:
        raise RequestError(f"format {recipe.format}: {'; '.join(faults)}; leave it out")
    if not holds_bits(recipe.model_dump(include={"bits", "format", "compression", "tile_format"})):
        inside = _jpeg_inside(recipe.format, recipe.compression, recipe.tile_format)
        what = f"{recipe.format} with jpeg inside" if inside else recipe.format
        raise RequestError(
            f"{what} holds 8 bits a sample, not {recipe.bits}; leave --bits out, or use tiff, png "
            "or tiles of png"
        )


def without_effect(said: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of a recipe that say nothing in its format.

    Args:
        said: A partial recipe; what it does not say is the default.
    """
    whole = _whole(said)
    takes = FORMATS[whole["format"]].takes
    if _jpeg_inside(whole["format"], whole["compression"], whole["tile_format"]):
        takes = (*takes, "quality")
    return tuple(key for key in _CHOICES if key not in takes)


def holds_bits(said: Mapping[str, Any]) -> bool:
    """Whether the format of a partial recipe holds its bits."""
    whole = _whole(said)
    inside = _jpeg_inside(whole["format"], whole["compression"], whole["tile_format"])
    return whole["bits"] == 8 or (whole["bits"] in FORMATS[whole["format"]].bits and not inside)


def _whole(said: Mapping[str, Any]) -> dict[str, Any]:
    usual = {key: field.default for key, field in Recipe.model_fields.items()}
    return usual | {key: value for key, value in said.items() if value is not None}


def _jpeg_inside(name: str, compression: str, tile_format: str) -> bool:
    return (name == "tiff" and compression == "jpeg") or (
        name == "tiles" and tile_format == "jpeg"
    )


def default_output(recipe: Recipe) -> Path:
    """The name of an output that was not given one: from prompt, seed and format.

    An enlarged picture is named after the one that it was made from, and its size.
    """
    name = f"{_slug(recipe.prompt)}-seed{recipe.seed}"
    if recipe.source is not None:
        size = f"{recipe.width_px}x{recipe.height_px}"
        name = f"{_slug(Path(recipe.source.path).stem)}-{size}-seed{recipe.seed}"
    return Path(name + usual_suffix(recipe))


def usual_suffix(recipe: Recipe) -> str:
    """The suffix of a recipe's format, and of its layout of tiles."""
    if recipe.format == "tiles":
        return next(s for s, layout in _LAYOUTS.items() if layout == recipe.tile_layout)
    return FORMATS[recipe.format].suffixes[0]


def _slug(prompt: str) -> str:
    """At most 60 ASCII bytes; a prompt that does not survive gets a part of its hash.

    The hash keeps two long prompts, or two in another script, from sharing one name.
    """
    plain = unicodedata.normalize("NFKD", prompt)
    plain = "".join(char for char in plain if not unicodedata.combining(char)).lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    lost_letters = any(char.isalnum() and not char.isascii() for char in plain)
    if slug and not lost_letters and len(slug) <= _SLUG_BYTES:
        return slug
    digits = hashlib.sha256(prompt.encode()).hexdigest()[:_HASH_DIGITS]
    kept = slug[: _SLUG_BYTES - _HASH_DIGITS - 1].strip("-") or "image"
    return f"{kept}-{digits}"


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise RequestError(f'format "{name}" is unknown; use one of {", ".join(FORMATS)}')
    return FORMATS[name]


def _by_suffix(path: Path) -> Format:
    suffix = split_name(path)[1]
    for fmt in FORMATS.values():
        if suffix.lower() in fmt.suffixes:
            return fmt
    known = ", ".join(suffix for fmt in FORMATS.values() for suffix in fmt.suffixes)
    what = f'no known suffix ("{suffix}")' if suffix else "no suffix"
    raise RequestError(f'output "{path.name}" has {what}; use one of {known}')
