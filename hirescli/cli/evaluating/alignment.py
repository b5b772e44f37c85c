"""`hires eval alignment`: do pictures show what their prompts asked for?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hirescli.cli.evaluating.shared import (
    Adapter,
    Attention,
    Device,
    GuidanceScale,
    Json,
    Model,
    Output,
    Seed,
    Steps,
    given,
    need_scipy,
    option,
    say,
    told,
    write_json,
    write_text,
)
from hirescli.errors import RequestError

_SIZE = 256
_SIZES = (64, 1024)


def alignment(
    output: Output,
    size: Annotated[
        int,
        option(
            "--size",
            metavar="N",
            text=f"Side of the pictures in pixels, {_SIZES[0]} to {_SIZES[1]}, a multiple of 8. "
            f"Default: {_SIZE}.",
        ),
    ] = _SIZE,
    count: Annotated[
        int | None,
        option("--count", metavar="N", min=1, text="The first N prompts only. Default: all 224."),
    ] = None,
    seed: Seed = 0,
    model: Model = None,
    attention: Attention = None,
    adapter: Adapter = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    device: Device = None,
    renders: Annotated[
        Path | None,
        option(
            "--renders",
            metavar="FOLDER",
            text="Where features of renders are kept, for other models to be measured too. "
            "Default: OUTPUT/renders.",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Text alignment: make pictures of 224 fixed prompts with fixed seeds, and look at them.

    A classifier, trained on renders only, says family, time of day and look (main colour,
    material or cover) of every picture. Its accuracy on renders it has not seen stands beside.
    Written: the pictures, alignment.json, alignment.md and confusion.png. Needs the extra `eval`.
    """
    need_scipy()
    if not _SIZES[0] <= size <= _SIZES[1] or size % 8:
        raise RequestError(
            f"size {size} is no multiple of 8 from {_SIZES[0]} to {_SIZES[1]}; give another --size"
        )
    from hirescli.evaluation.alignment import measure_alignment
    from hirescli.evaluation.attributes import alignment_prompts
    from hirescli.evaluation.efficientnet import load_efficientnet
    from hirescli.evaluation.reports import alignment_page, confusion_chart

    network = load_efficientnet()  # what is missing is said before anything is made
    output.mkdir(parents=True, exist_ok=True)
    found = measure_alignment(
        alignment_prompts()[:count],
        output,
        renders or output / "renders",
        given(
            size=size, model=model, attention=attention, adapter=adapter, steps=steps,
            guidance_scale=guidance_scale, device=device,
        ),
        seed=seed,
        network=network,
        told=told,
    )  # fmt: skip
    page = alignment_page(found)
    write_text(output / "alignment.md", page)
    write_json(output / "alignment.json", found.to_json())
    confusion_chart(output / "confusion.png", found.generated, title="Families of pictures")
    say(found.to_json(), page, as_json=json_)
