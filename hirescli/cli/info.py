"""`hires info`: what a picture says about how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hirescli.cli.json_errors import json_errors
from hirescli.cli.streams import json_visible, visible


def info(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A picture made by hires (TIFF, PNG, JPEG, WebP, AVIF, .dzi or a folder of "
            "tiles), a recipe, or another program's picture with A1111's text.",
        ),
    ],
    json_: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the recipe as JSON, as --recipe reads it; of A1111's text an object with "
            "the key parameters. What the file is stands under the key file.",
        ),
    ] = False,
) -> None:
    """Show what a file is, and the recipe it was made from; `generate --recipe FILE` repeats it.

    Of other programs' pictures it shows the text that A1111's web interface and many others
    embed: prompt, negative prompt, steps, sampler, CFG scale, seed, size, model.
    """
    with json_errors(json_):
        _info(file, as_json=json_)


def _info(file: Path, *, as_json: bool) -> None:
    from hirescli.output.metadata import inspect, is_picture, read_recipe
    from hirescli.recipe import Recipe

    if file.suffix.lower() == ".json" or not is_picture(file):
        recipe = dict(read_recipe(file))
        Recipe.from_fragments(recipe, source=str(file))  # complete and of our kind, or refused
        _show(recipe, as_json=as_json)
        return
    from hirescli.output.file_facts import file_facts

    facts = inspect(file)
    if facts.recipe is not None:
        Recipe.from_fragments(facts.recipe, source=str(file))
    about = file_facts(facts)
    parameters = facts.parameters if facts.recipe is None else None
    if as_json:
        said = {} if parameters is None else {"parameters": parameters}
        _show((facts.recipe or said) | {"file": about}, as_json=True)
        return
    _show(_in_words(about), as_json=False)
    print()
    if facts.recipe is not None:
        _show(facts.recipe, as_json=False)
    elif parameters is not None:
        print("another program's picture; its A1111 text says:")
        _show(parameters | parameters.pop("others", {}), as_json=False)
    else:
        print("it holds no recipe of hires, and no A1111 text")


def _in_words(about: dict[str, Any]) -> dict[str, Any]:
    from hirescli.planning.print_size import paper_words
    from hirescli.units import format_bytes

    width_px, height_px = about["width_px"], about["height_px"]
    return {
        "file": about["format"],
        "pixels": f"{width_px}x{height_px}",
        "bits": about.get("bits"),
        "levels": about["levels"],
        "bytes": f"{about['bytes']} ({format_bytes(about['bytes'])})",
        "print": paper_words(width_px, height_px, about["dpi"]) if "dpi" in about else None,
    }


def _show(said: dict[str, Any], *, as_json: bool) -> None:
    # The file may come from anybody: nothing in it steers the terminal.
    if as_json:
        print(json_visible(json.dumps(said, sort_keys=True, ensure_ascii=False)))
        return
    width = max(map(len, said))
    for key, value in said.items():
        if value is not None:
            print(visible(f"{key:<{width}}  {value}"))
