"""`hires train`: make the built-in model from nothing. Needs the extra `train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hirescli.cli.options import paragraphs
from hirescli.errors import RequestError

app = typer.Typer(
    help="Make the built-in model from nothing: render pictures, train its parts, export them.",
    no_args_is_help=True,
)
_Shards = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="Shards of this kind, 256 pictures each, from 0 on."),
]


def render(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the shards go.")],
    wide: _Shards = 200,
    crop: _Shards = 100,
    close: _Shards = 60,
    detail: _Shards = 60,
    held_out: Annotated[
        bool,
        typer.Option("--held-out", help="Render pictures that training never sees, to test with."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, metavar="N", help="Processes, 1 to 1024. Default: one per core."
        ),
    ] = None,
) -> None:
    """Render captioned pictures into shards. Shards that are there already are left as they are.

    The same kind and number give the same pictures.
    """
    _need_scipy()
    from hirescli.training.dataset import render_shards

    counts = {"wide": wide, "crop": crop, "close": close, "detail": detail}
    counts = {kind: count for kind, count in counts.items() if count}
    done = render_shards(folder, counts, workers=workers or os.cpu_count() or 1, held_out=held_out)
    for kind, number in done:
        print(f"{kind} {number}", flush=True)


app.command("render", help=paragraphs(render.__doc__))(render)


def _need_scipy() -> None:
    from importlib.util import find_spec

    if find_spec("scipy") is None:
        raise RequestError('training needs scipy; install it with: pip install ".[train]"')
