"""What each output format can hold, and which one a file name asks for."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from hirescli.errors import RequestError
from hirescli.recipe import Recipe
from hirescli.units import format_bytes

FormatName = Literal["tiff", "png", "jpeg"]
_SLUG_BYTES = 60
_HASH_DIGITS = 8


@dataclass(frozen=True)
class Format:
    """One image format.

    Attributes:
        name: As in a recipe.
        suffixes: Lower case, the usual one first.
        max_side_px: Longest side that files or libvips can hold.
        max_bytes: Largest file, None without a limit that matters.
        written: Whether this version writes it.
    """

    name: str
    suffixes: tuple[str, ...]
    max_side_px: int
    max_bytes: int | None = None
    written: bool = True


FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format("tiff", (".tif", ".tiff"), 2**31 - 1),  # BigTIFF: no limit of 4 GB
        Format("png", (".png",), 2**31 - 1),
        Format("jpeg", (".jpg", ".jpeg"), 65_500),  # libvips' limit; the format's is 65,535
        Format("webp", (".webp",), 16_383, written=False),
        Format("avif", (".avif",), 16_384, 5 * 10**9, written=False),
    )
}
DEFAULT_FORMAT: FormatName = "tiff"
_WRITTEN = [fmt for fmt in FORMATS.values() if fmt.written]


def format_for(path: Path | None, stated: str | None = None) -> FormatName:
    """The format that an output name and a stated format agree on.

    Args:
        path: The output, or None when its name is still open.
        stated: A format given in words, or None.

    Raises:
        RequestError: If either is unknown or not written by this version, or both disagree.
    """
    chosen = _chosen(path, stated)
    if not chosen.written:
        raise RequestError(_not_written(chosen))
    return cast(FormatName, chosen.name)


def check_held(path: Path | None, stated: str | None, width_px: int, height_px: int) -> None:
    """Refuse a format that cannot hold the size, also one that this version does not write.

    Raises:
        RequestError: As `format_for` and `check_format`.
    """
    check_format(_chosen(path, stated).name, width_px, height_px)


def _chosen(path: Path | None, stated: str | None) -> Format:
    by_words = _named(stated) if stated is not None else None
    by_suffix = _by_suffix(path) if path is not None else None
    if by_words and by_suffix and by_words != by_suffix:
        assert path is not None
        raise RequestError(
            f'output "{path.name}" is {by_suffix.name} by its suffix, but the format asked for '
            f"is {by_words.name}; name it {path.stem}{by_words.suffixes[0]}"
        )
    return by_words or by_suffix or FORMATS[DEFAULT_FORMAT]


def with_output(recipe: Recipe, output: Path | None) -> Recipe:
    """The recipe with the format that the output's suffix asks for.

    Raises:
        RequestError: As `format_for`; a format other than the default must agree.
    """
    stated = recipe.format if recipe.format != DEFAULT_FORMAT else None
    chosen = format_for(output, stated)
    return recipe if chosen == recipe.format else recipe.model_copy(update={"format": chosen})


def check_format(name: str, width_px: int, height_px: int) -> None:
    """Refuse a format that cannot hold the size.

    Raises:
        RequestError: With the size, the limit and the formats that can.
    """
    fmt = _named(name)
    longest_px = max(width_px, height_px)
    if longest_px > fmt.max_side_px:
        can = [f.name for f in _WRITTEN if f.max_side_px >= longest_px]
        raise RequestError(
            f"{fmt.name} cannot hold {width_px}x{height_px} px: a side is at most "
            f"{fmt.max_side_px} px; use {' or '.join(can)}"
        )
    raw_bytes = width_px * height_px * 3
    if fmt.max_bytes is not None and raw_bytes > fmt.max_bytes:
        raise RequestError(
            f"{fmt.name} cannot hold {width_px}x{height_px} px: it is limited to "
            f"{format_bytes(fmt.max_bytes)}; use tiff"
        )
    if not fmt.written:
        raise RequestError(_not_written(fmt))


def check_options(recipe: Recipe) -> None:
    """Refuse choices that would have no effect in the recipe's format.

    Raises:
        RequestError: Naming each such choice and the format it belongs to.
    """
    where = {
        "compression": "tiff",
        "tile_px": "tiff",
        "quality": "jpeg, or tiff with jpeg compression,",
    }
    faults = [
        f"{key} {getattr(recipe, key)} is for {where[key]} only"
        for key in without_effect(recipe.format, recipe.compression)
        if getattr(recipe, key) != Recipe.model_fields[key].default
    ]
    if faults:
        raise RequestError(f"format {recipe.format}: {'; '.join(faults)}; leave it out")


def without_effect(name: str, compression: str) -> tuple[str, ...]:
    """The choices of a recipe that say nothing in a format with a compression inside it."""
    if name == "tiff":
        return () if compression == "jpeg" else ("quality",)
    return ("compression", "tile_px") if name == "jpeg" else ("compression", "tile_px", "quality")


def default_output(recipe: Recipe) -> Path:
    """The name of an output that was not given one: from prompt, seed and format.

    An enlarged picture is named after the one that it was made from, and its size.
    """
    name = f"{_slug(recipe.prompt)}-seed{recipe.seed}"
    if recipe.source is not None:
        size = f"{recipe.width_px}x{recipe.height_px}"
        name = f"{_slug(Path(recipe.source.path).stem)}-{size}-seed{recipe.seed}"
    return Path(name + FORMATS[recipe.format].suffixes[0])


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
        known = ", ".join(fmt.name for fmt in _WRITTEN)
        raise RequestError(f'format "{name}" is unknown; use one of {known}')
    return FORMATS[name]


def _by_suffix(path: Path) -> Format:
    suffix = path.suffix.lower()
    for fmt in FORMATS.values():
        if suffix in fmt.suffixes:
            return fmt
    known = ", ".join(suffix for fmt in _WRITTEN for suffix in fmt.suffixes)
    what = f'no known suffix ("{path.suffix}")' if suffix else "no suffix"
    raise RequestError(f'output "{path.name}" has {what}; use one of {known}')


def _not_written(fmt: Format) -> str:
    known = ", ".join(f"{f.name} ({f.suffixes[0]})" for f in _WRITTEN)
    return f"this version does not write {fmt.name}; use one of {known}"
