"""`hires eval coco`: a paper's protocol, for those who have the data and the weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hirescli.cli.evaluating.shared import Device, Json, Model, option
from hirescli.errors import RequestError

_COUNT = 30_000  # of the paper
_SIZE = "512"


def coco(
    captions: Annotated[
        Path,
        typer.Argument(
            metavar="CAPTIONS",
            help="Captions in COCO's format, such as captions_val2014.json.",
            show_default=False,
        ),
    ],
    real: Annotated[
        Path,
        typer.Argument(
            metavar="REAL",
            help="Folder of the real pictures, such as val2014.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        option("-o", "--output", metavar="FOLDER", text="Where the generated pictures go."),
    ],
    inception: Annotated[
        Path | None,
        option(
            "--inception",
            metavar="FILE",
            text="Weights of Inception v3 for FID, as a .safetensors file. Needed.",
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        option(
            "--clip",
            metavar="FOLDER",
            text="A CLIP model with its tokenizer, in transformers' layout. Needed.",
        ),
    ] = None,
    count: Annotated[
        int,
        option(
            "--count",
            metavar="N",
            min=2,
            max=1_000_000,
            text=f"Captions, one picture each. Default: {_COUNT}.",
        ),
    ] = _COUNT,
    size: Annotated[
        str,
        option("--size", metavar="N|WxH", text=f"Size of the pictures. Default: {_SIZE}."),
    ] = _SIZE,
    seed: Annotated[
        int,
        option("-s", "--seed", metavar="N", min=0, text="Of captions and pictures. Default: 0."),
    ] = 0,
    model: Model = None,
    attention: Annotated[
        str | None,
        option(
            "--attention",
            metavar="auto|linear|full",
            text="As in `hires generate`; linear is what the paper evaluates. Default: linear.",
        ),
    ] = "linear",
    steps: Annotated[
        int | None,
        option(
            "--steps",
            metavar="N",
            text="As in `hires generate`. Published figures: 25.",
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        option(
            "--guidance-scale",
            "--cfg-scale",
            metavar="X",
            text="As in `hires generate`. Published figures: 7.5.",
        ),
    ] = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """FID and CLIP score on COCO, as in LinFusion's paper.

    Captions of different pictures are chosen by the seed, one picture is made for each, and
    compared with the real ones at 256 px. Pictures that are there are left: the same command
    goes on where it ended.

    Figures compare with those of others only at the full count and with the same networks.
    """
    for name, given in (("--inception", inception), ("--clip", clip)):
        if given is None:
            raise RequestError(
                f"{name} is missing: FID and CLIP score need networks that do not come with "
                "hires; docs/attention.md says which, and how to bring them into the format"
            )
    assert inception is not None
    assert clip is not None
    for path in (captions, real, inception, clip):
        if not path.exists():
            raise RequestError(f"{path} does not exist; check the path")
    from hirescli.evaluation.coco import (
        choose_captions,
        generate_pictures,
        load_clip,
        real_pictures,
        scores,
    )
    from hirescli.evaluation.inception import load_inception

    chosen = choose_captions(captions, count=count, seed=seed)
    # Read once before hours are spent on pictures: what is wrong with them is said now.
    real_pictures(real)
    load_inception(inception)
    load_clip(clip)
    output.mkdir(parents=True, exist_ok=True)
    said = {
        "size": size, "seed": seed, "model": model, "attention": attention, "steps": steps,
        "guidance_scale": guidance_scale, "device": device,
    }  # fmt: skip
    choices = {key: value for key, value in said.items() if value is not None}
    generate_pictures(chosen, output, choices, told=_told(count))
    found = scores(chosen, output, real, inception=inception, clip=clip, device=device or "cpu")
    if json_:
        print(json.dumps({**found, "count": count, "size": size, "seed": seed}))
    else:
        print(f"{count} pictures, FID {found['fid']:.2f}, CLIP score {found['clip_score']:.4f}")


def _told(count: int) -> Any:
    """Says every hundredth picture to people who watch."""

    def told(done: int) -> None:
        if sys.stderr.isatty() and (done % 100 == 0 or done == count):
            print(f"{done} of {count} pictures", file=sys.stderr, flush=True)

    return told
