"""From options to plans: preset, recipe file and flags become one recipe per image."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.cli.options.request import RequestOptions
from hirescli.errors import RequestError

if TYPE_CHECKING:
    from hirescli.planning.machine import Machine
    from hirescli.planning.plan import Plan
    from hirescli.recipe import Recipe

_STDIN = "-"
# Choices that a plan made for one size.
_OF_THE_SIZE = ("rows", "strengths", "upscale_steps", "upscale_guidance_scale")
_MOST_STDIN_BYTES = 10**6  # a prompt, not a file by mistake


@dataclass(frozen=True)
class Image:
    """One image of a request: what is planned, and where it goes."""

    plan: Plan
    output: Path


def images(
    options: RequestOptions,
    machine: Machine,
    source: Path | None = None,
    also: Sequence[str] = (),
) -> tuple[Image, ...]:
    """The images that a request asks for, one per seed.

    Args:
        options: What is asked for.
        machine: Where they shall be made.
        source: A picture that is enlarged; None: images begin from noise.
        also: Names of further files of each image.

    Raises:
        RequestError: If the request is wrong; nothing was loaded or written.
    """
    from hirescli.cli.app import say
    from hirescli.models.registry import card_of
    from hirescli.output.inputs import identified
    from hirescli.planning.also import with_also
    from hirescli.planning.plan import make_plan
    from hirescli.planning.print_size import parse_print

    if options.output == "":
        raise RequestError("output is empty; give a file name with -o, or leave it out")
    for name in also:
        if _named_file(name) is None:
            raise RequestError(f'--also "{name}" is no file name; write it like sea.jpg')
    said_limits = limits(options)
    recipes = tuple(map(identified, _recipes(options, source)))
    if options.print_ is not None:
        say(parse_print(options.print_).said(), kind="note")
    made = []
    for asked in recipes:
        output, *others = (
            _output(name, asked, several=len(recipes) > 1) for name in (options.output, *also)
        )
        recipe, files = with_also(asked, others)
        plan = make_plan(recipe, card_of(recipe), machine=machine, also=files, **said_limits)
        made.append(Image(plan, output))
    return tuple(made)


def limits(options: RequestOptions) -> dict[str, Any]:
    """What plans must keep to, as `make_plan` takes it.

    Raises:
        RequestError: If an amount of memory is none.
    """
    from hirescli.units import parse_bytes

    def read(text: str | None) -> int | None:
        return None if text is None else parse_bytes(text)

    return {
        "memory_bytes": read(options.memory),
        "host_memory_bytes": read(options.host_memory),
        "spill": options.spill,
    }


def distinct_seeds(options: RequestOptions) -> list[int]:
    """The seeds that were given, none of them twice.

    Raises:
        RequestError: If one is.
    """
    seeds = options.seed or []
    doubled = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if doubled:
        raise RequestError(f"seed {doubled[0]} is given twice; give each seed once")
    return seeds


def _recipes(options: RequestOptions, source: Path | None) -> tuple[Recipe, ...]:
    from hirescli.recipe import Recipe

    files = [*recipe_file(options.recipe), *preset_file(options.preset)]
    flags = _flags(options, files)
    if source is None:
        sized = _default_size([*files, flags])
    else:
        from hirescli.output.enlarging import enlarging

        completed = enlarging(source, [*files, flags])
        sized, flags = {}, {k: v for k, v in flags.items() if k != "size"} | completed
    fragments = [sized, *fitting(files, flags), flags]
    if options.recipe is not None:
        fragments[1] = of_its_size(fragments[1], fragments[2:])
    per_seed: list[dict[str, Any]] = [{"seed": seed} for seed in distinct_seeds(options)] or [{}]
    return tuple(
        Recipe.from_fragments(*fragments, seed, source="the request") for seed in per_seed
    )


def _flags(options: RequestOptions, files: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The flags; a suffix of `--output` says a format as `--format` does."""
    from hirescli.planning.formats import check_held, format_for, format_on_paper, layout_for

    if options.prompt == _STDIN:
        options = dataclasses.replace(options, prompt=prompt_from_stdin())
    flags = options.fragment()
    named = _named_file(options.output)
    if options.print_ is not None and (on_paper := format_on_paper(named)) is not None:
        flags.setdefault("format", on_paper)
    if named is not None or "format" in flags:
        if (size := _size([*files, flags])) is not None:
            check_held(named, flags.get("format"), *size)  # names the limit where there is one
        flags["format"] = format_for(named, flags.get("format"))
        layout = layout_for(named, flags.get("tile_layout"))
        flags |= {} if layout is None else {"tile_layout": layout}
    return flags


def merged(fragments: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What fragments say in the end; one that says None of a key says nothing of it."""
    said: dict[str, Any] = {}
    for fragment in fragments:
        said |= {key: value for key, value in fragment.items() if value is not None}
    return said


def _size(fragments: list[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Width and height that fragments say in the end; None if none, or if it is no size."""
    from hirescli.recipe import expand_size

    try:
        said = merged(map(expand_size, fragments))
    except RequestError:  # reported with all other faults later
        return None
    width_px, height_px = said.get("width_px"), said.get("height_px")
    if not isinstance(width_px, int) or not isinstance(height_px, int):
        return None
    return width_px, height_px


def fitting(files: list[Mapping[str, Any]], flags: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files without what served their own format and says nothing in the asked one.

    Nor bits that the asked one does not hold, unless the flags say bits.
    """
    from hirescli.planning.formats import holds_bits, without_effect

    def useless(fragments: list[Mapping[str, Any]]) -> tuple[str, ...]:
        said = merged(fragments)
        fits = holds_bits(said) or flags.get("bits") is not None
        return (*without_effect(said), *(() if fits else ("bits",)))

    dropped = useless([*files, flags])
    return [
        {k: v for k, v in file.items() if k not in dropped or k in useless([file])}
        for file in files
    ]


def of_its_size(recipe: Mapping[str, Any], others: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The recipe of a file without what was decided for its size, where another is asked for."""
    size = _size([recipe])
    if size is None or _size([recipe, *others]) == size:
        return recipe
    return {key: value for key, value in recipe.items() if key not in _OF_THE_SIZE}


def prompt_from_stdin() -> str:
    """The prompt that is read from stdin."""
    data = sys.stdin.buffer.read(_MOST_STDIN_BYTES + 1)
    if len(data) > _MOST_STDIN_BYTES:
        raise RequestError(
            f"the prompt on stdin has more than {_MOST_STDIN_BYTES} bytes; give a shorter one"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the prompt on stdin is not UTF-8 (byte {error.start}); convert it"
        ) from error


def recipe_file(path: Path | None) -> list[Mapping[str, Any]]:
    """What a recipe file, or the recipe in a picture, says; empty without one."""
    if path is None:
        return []
    if path.suffix.lower() == ".json":  # the common case needs no image library
        from hirescli.recipe import read_recipe_file

        return [read_recipe_file(path)]
    from hirescli.output.metadata import read_recipe

    return [read_recipe(path)]


def preset_file(name: str | None) -> list[Mapping[str, Any]]:
    """What a preset says; empty without one."""
    if name is None:
        return []
    from hirescli import presets

    return [presets.load(name).fragment]


def _default_size(fragments: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The model's native square if nobody says a size; half a size said is left to the recipe."""
    from hirescli.models.registry import find
    from hirescli.recipe import Recipe

    said: dict[str, Any] = {}
    for fragment in fragments:
        said |= fragment
    if any(said.get(key) is not None for key in ("size", "width_px", "height_px")):
        return {}
    model = said.get("model") or Recipe.model_fields["model"].default
    return {"size": find(model, said.get("revision"), weights=False).card.default_px}


def _named_file(output: str | None) -> Path | None:
    """`--output` as a file, None if it names a folder or nothing.

    A folder of tiles is an output.
    """
    from hirescli.planning.formats import is_folder

    if output is None or output.endswith("/"):
        return None
    if os.path.isdir(output) and not is_folder(Path(output)):  # also for endless names
        return None
    return Path(output)


def _output(output: str | None, recipe: Recipe, *, several: bool) -> Path:
    from hirescli.planning.formats import default_output, split_name

    named = _named_file(output)
    if named is None:
        return Path(output or "") / default_output(recipe)
    if several and "{seed}" not in named.name:
        stem, suffix = split_name(named)
        named = named.with_name(f"{stem}-seed{{seed}}{suffix}")
    return named.with_name(named.name.replace("{seed}", str(recipe.seed)))
