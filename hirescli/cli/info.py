"""`hires info`: what a picture says about how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

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
            "the key parameters.",
        ),
    ] = False,
) -> None:
    """Show the recipe that an image was made from. `hires generate --recipe FILE` repeats it.

    Of other programs' pictures it shows the text that A1111's web interface and many others
    embed: prompt, negative prompt, steps, sampler, CFG scale, seed, size, model.
    """
    from hirescli.output.metadata import read_recipe
    from hirescli.recipe import Recipe

    parameters = _parameters(file)
    if parameters is not None:
        if not json_:
            print("another program's picture; its A1111 text says:")
            parameters |= parameters.pop("others", {})
        _show({"parameters": parameters} if json_ else parameters, as_json=json_)
        return
    recipe = dict(read_recipe(file))
    Recipe.from_fragments(recipe, source=str(file))  # complete and of our kind, or refused
    _show(recipe, as_json=json_)


def _parameters(file: Path) -> dict[str, Any] | None:
    """A1111's text in a picture without a recipe of ours; None if there is none."""
    if file.suffix.lower() == ".json":  # the common case needs no image library
        return None
    from hirescli.errors import RequestError
    from hirescli.output.metadata import inspect

    try:
        facts = inspect(file)
    except RequestError:
        return None  # a recipe, or what `read_recipe` names
    return facts.parameters if facts.recipe is None else None


def _show(said: dict[str, Any], *, as_json: bool) -> None:
    # The file may come from anybody: nothing in it steers the terminal.
    if as_json:
        print(json_visible(json.dumps(said, sort_keys=True, ensure_ascii=False)))
        return
    width = max(map(len, said))
    for key, value in said.items():
        if value is not None:
            print(visible(f"{key:<{width}}  {value}"))
