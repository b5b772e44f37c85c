"""`hires upscale`: from a picture to a larger one with more in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hirescli.cli.generate import make
from hirescli.cli.options.file import AlsoOptions
from hirescli.cli.options.making import MakingOptions
from hirescli.cli.options.request import RequestOptions, takes


@takes(RequestOptions, MakingOptions, AlsoOptions)
def upscale(
    request: RequestOptions,
    how: MakingOptions,
    files: AlsoOptions,
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE",
            help="Picture to enlarge: TIFF, also of gigapixels, PNG, JPEG or another that Pillow "
            "reads.",
            show_default=False,
        ),
    ],
) -> None:
    """Enlarge a picture; the model draws what the larger one shows of it.

    --size is the long side, or width and height in the picture's shape; without it both sides
    are doubled. It grows by at most 2 in a stage: each adds noise, --strength of it, and denoises
    it again. A --prompt that says what is in the picture helps. Everything else is as in
    `hires generate`.
    """
    make(request, how, source=image, also=files.also or ())
