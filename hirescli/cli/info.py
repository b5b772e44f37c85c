"""`hires info`: the recipe inside an output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


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

    recipe = dict(read_recipe(file))
    if json_:
        print(json.dumps(recipe, sort_keys=True, ensure_ascii=False))
        return
    width = max(map(len, recipe))
    for key, value in recipe.items():
        if value is not None:
            print(f"{key:<{width}}  {value}")
