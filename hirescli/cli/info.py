"""`hires info`: the recipe inside an output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hirescli.cli.streams import json_visible, visible


def info(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A TIFF, PNG or JPEG made by hires, or a recipe."),
    ],
    json_: Annotated[
        bool,
        typer.Option("--json", help="Print the recipe as JSON, as --recipe reads it."),
    ] = False,
) -> None:
    """Show the recipe that an image was made from. `hires generate --recipe FILE` repeats it."""
    from hirescli.output.metadata import read_recipe
    from hirescli.recipe import Recipe

    recipe = dict(read_recipe(file))
    Recipe.from_fragments(recipe, source=str(file))  # complete and of our kind, or refused
    # The file may come from anybody: nothing in it steers the terminal.
    if json_:
        print(json_visible(json.dumps(recipe, sort_keys=True, ensure_ascii=False)))
        return
    width = max(map(len, recipe))
    for key, value in recipe.items():
        if value is not None:
            print(visible(f"{key:<{width}}  {value}"))
