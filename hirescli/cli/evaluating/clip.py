"""`hires eval clip`: do pictures fit their prompts, by a CLIP model that the user has?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hirescli.cli.evaluating.shared import Device, Json, option, say
from hirescli.cli.options.machine import found_device
from hirescli.errors import RequestError


def clip(
    pictures: Annotated[
        Path,
        typer.Argument(
            metavar="PICTURES",
            help="Folder of pictures that hires has made: their prompts are in them. Of others, "
            "NAME.txt beside NAME.png holds the prompt.",
            show_default=False,
        ),
    ],
    clip: Annotated[
        Path | None,
        option(
            "--clip",
            metavar="FOLDER",
            text="A CLIP model with its tokenizer, in transformers' layout. Needed.",
        ),
    ] = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """CLIP score: mean cosine between pictures and their prompts, after "A photo depicts "."""
    if clip is None:
        raise RequestError(
            "--clip is missing: CLIP's weights do not come with hires; name a folder with a "
            "CLIPModel and its tokenizer, such as a download of openai/clip-vit-large-patch14"
        )
    if not clip.is_dir():
        raise RequestError(f"there is no folder {clip} of a CLIP model; check the path")
    from hirescli.evaluation.coco import clip_score, load_clip
    from hirescli.evaluation.picture_sets import prompted

    place = found_device(device)
    pairs = prompted(pictures)
    model, tokenizer = load_clip(clip)
    paths, texts = [path for path, _ in pairs], [text for _, text in pairs]
    score = clip_score(paths, texts, model.to(place), tokenizer)
    found = {"clip_score": score, "count": len(pairs)}
    say(found, f"CLIP score {score:.4f}, {len(pairs)} pictures", as_json=json_)
