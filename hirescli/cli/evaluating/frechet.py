"""`hires eval frechet`: how far apart two sets of pictures are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hirescli.cli.evaluating.shared import Json, Kinds, option, say


def frechet(
    pictures: Annotated[
        Path,
        typer.Argument(
            metavar="PICTURES",
            help="Folder of pictures, or of training shards.",
            show_default=False,
        ),
    ],
    others: Annotated[
        Path,
        typer.Argument(
            metavar="OTHERS",
            help="Folder of those to compare with, such as renders made with "
            "`hires train render --held-out`.",
            show_default=False,
        ),
    ],
    count: Annotated[
        int | None,
        option(
            "--count",
            metavar="N",
            min=2,
            text="Pictures of either folder, evenly chosen. Default: all of each.",
        ),
    ] = None,
    kind: Kinds = None,
    inception: Annotated[
        Path | None,
        option(
            "--inception",
            metavar="FILE",
            text="Weights of Inception v3 as a .safetensors file: the figure is FID then. "
            "Default: EfficientNet-Lite0, which comes with the extra `eval`.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Fréchet distance between two folders of pictures.

    Files are cut to their middle square and resized to 256 px. With few pictures the distance is
    larger than with many: compare only figures of equal counts and of the same network.
    """
    from hirescli.evaluation.picture_sets import read_set
    from hirescli.evaluation.sets import distance

    found = distance(
        read_set(pictures, count=count, kinds=kind or ()),
        read_set(others, count=count, kinds=kind or ()),
        inception=inception,
    )
    name = "Fréchet distance of EfficientNet-Lite0" if inception is None else "FID"
    text = f"{name} {found.distance:.2f}, {found.count} pictures against {found.other_count}"
    say(found.to_json(), text, as_json=json_)
