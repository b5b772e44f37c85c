"""Further files of one picture, made from the same spool as its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import RequestError
from hirescli.planning.formats import (
    FORMATS,
    check_format,
    check_options,
    format_for,
    holds_bits,
    layout_for,
    parts,
    without_effect,
)
from hirescli.recipe import Recipe

# Choices that say something in some formats only.
OF_SOME_FORMATS = frozenset(
    {"compression", "pyramid", "tile_px", "tile_layout", "tile_format", "quality"}
)


@dataclass(frozen=True)
class AlsoFile:
    """A further file of a picture.

    Attributes:
        path: Its name; the suffix says the format.
        choices: What its recipe says differently from that of the output.
    """

    path: Path
    choices: Mapping[str, Any]

    def recipe(self, main: Recipe) -> Recipe:
        """The recipe of this file, from that of the output."""
        return main.model_copy(update=dict(self.choices))


def with_also(recipe: Recipe, paths: Sequence[Path]) -> tuple[Recipe, tuple[AlsoFile, ...]]:
    """Give each file of a picture the choices that say something in its format.

    A file of a format of 8 bits is rounded from the 16 of the output; one of both is as the
    output.

    Args:
        recipe: Of the output, with choices for all files.
        paths: The further files.

    Returns:
        The recipe without what is for further files only, and these.

    Raises:
        RequestError: If a format cannot hold the picture, or a choice.
    """
    made = tuple(AlsoFile(path, choices_for(recipe, path)) for path in paths)
    for each in made:
        own = each.recipe(recipe)
        check_format(own.format, own.width_px, own.height_px)
        check_options(own)
    if not holds_bits(recipe.model_dump()):
        deep = next((each.path for each in made if each.recipe(recipe).bits == recipe.bits), None)
        if deep is not None:
            raise RequestError(
                f"{recipe.format} holds 8 bits a sample, not {recipe.bits}, and all files are "
                f"made from the output's: make {deep} the output, with -o, and name the other "
                "with --also"
            )
    of_others = {key for each in made for key in effective(each.recipe(recipe))}
    return recipe.model_copy(update=_usual(of_others - effective(recipe))), made


def check_apart(outputs: Sequence[Path]) -> None:
    """Refuse two files of one name, also where one of them has several parts.

    Raises:
        RequestError: Naming it.
    """
    seen: set[Path] = set()
    for part in (part for output in outputs for part in parts(output)):
        place = part.parent.resolve() / part.name
        if place in seen:
            raise RequestError(f"two files would be {part}; name each differently")
        seen.add(place)


def choices_for(recipe: Recipe, path: Path) -> dict[str, Any]:
    """What the recipe of a file of this name says differently: its format, and all that follows.

    Bits are lowered to 8 where the format holds no more; choices without effect are the default.

    Raises:
        RequestError: If the suffix is unknown.
    """
    name = format_for(path)
    said: dict[str, Any] = {"format": name}
    if name == "tiles":
        said["tile_layout"] = layout_for(path)
    own = recipe.model_copy(update=said)
    if recipe.bits not in FORMATS[name].bits or "quality" in effective(own):
        said["bits"] = 8
    # All of them are said: the output may keep the default where it has no use for a choice.
    used = effective(own)
    return _usual(OF_SOME_FORMATS - used) | {key: getattr(own, key) for key in used} | said


def effective(recipe: Recipe) -> frozenset[str]:
    """The choices among `OF_SOME_FORMATS` that say something in the recipe's format."""
    idle = without_effect(recipe.model_dump(include={"format", *OF_SOME_FORMATS}))
    return OF_SOME_FORMATS - frozenset(idle)


def _usual(keys: Set[str]) -> dict[str, Any]:
    return {key: Recipe.model_fields[key].default for key in sorted(keys)}
