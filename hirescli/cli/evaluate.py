"""`hires eval`: how good the pictures of a model are, measured."""

from __future__ import annotations

import typer

from hirescli.cli.evaluating.alignment import alignment
from hirescli.cli.evaluating.autoencoder import autoencoder
from hirescli.cli.evaluating.clip import clip
from hirescli.cli.evaluating.coco import coco
from hirescli.cli.evaluating.frechet import frechet
from hirescli.cli.evaluating.patches import patches
from hirescli.cli.evaluating.sheet import sheet
from hirescli.cli.options.option import paragraphs

app = typer.Typer(
    help="Measure how good the pictures of a model are, against renders, photographs and the "
    "data of papers.",
    no_args_is_help=True,
)
for name, command in (
    ("alignment", alignment),
    ("frechet", frechet),
    ("patches", patches),
    ("sheet", sheet),
    ("autoencoder", autoencoder),
    ("clip", clip),
    ("coco", coco),
):
    app.command(name, help=paragraphs(command.__doc__))(command)
