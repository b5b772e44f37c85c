"""`hires eval patches`: is the detail of large pictures like that of renders?"""

from __future__ import annotations

import os
from dataclasses import asdict
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
    Threads,
    given,
    need_scipy,
    option,
    say,
    told,
    write_json,
    write_text,
)
from hirescli.cli.options.machine import set_threads

_SIZES = (2048, 4096)
_COUNT = 14  # one of each family


def patches(
    output: Output,
    size: Annotated[
        list[int] | None,
        option(
            "--size",
            metavar="N",
            text="Side of the pictures in pixels, a multiple of 32 from 896 to 8192; give it "
            f"several times for several. Default: {' and '.join(map(str, _SIZES))}.",
        ),
    ] = None,
    count: Annotated[
        int,
        option(
            "--count",
            metavar="N",
            min=2,
            max=224,
            text="Pictures of each size, of the first N prompts of `hires eval alignment`; "
            f"12 patches are cut from each. Default: {_COUNT}, one of each family.",
        ),
    ] = _COUNT,
    realesrgan: Annotated[
        bool,
        option(
            "--realesrgan/--no-realesrgan",
            metavar="",
            text="Compare with Real-ESRGAN too, about 6 seconds of a core for four patches. "
            "Default: compare.",
        ),
    ] = True,
    seed: Seed = 0,
    model: Model = None,
    attention: Attention = None,
    adapter: Adapter = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    device: Device = None,
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """Fréchet distance of patches to patches of renders drawn at the same scale.

    Compared at each size: the picture itself; the picture of the same prompt and seed at a
    quarter of the side, enlarged by Lanczos and by Real-ESRGAN; and other renders, which say how
    low the figure can get. Patches have 224 px and lie at the same places.

    Written: the pictures, patches.json and patches.md. Needs the extra `eval`.
    """
    need_scipy()
    from hirescli.evaluation.attributes import alignment_prompts
    from hirescli.evaluation.efficientnet import load_efficientnet
    from hirescli.evaluation.esrgan import RealEsrgan
    from hirescli.evaluation.making import numbered
    from hirescli.evaluation.patches import check_size, measure_patches
    from hirescli.evaluation.reports import patches_page

    sizes = size or list(_SIZES)
    for each in sizes:
        check_size(each)
    set_threads(threads)
    network = load_efficientnet()  # what is missing is said before anything is made
    enlarger = RealEsrgan(threads or os.cpu_count() or 1) if realesrgan else None
    output.mkdir(parents=True, exist_ok=True)
    found = [
        measure_patches(
            numbered([prompt.text for prompt in alignment_prompts()[:count]], seed),
            output,
            given(
                model=model, attention=attention, adapter=adapter, steps=steps,
                guidance_scale=guidance_scale, device=device,
            ),
            size_px=each,
            network=network,
            enlarger=enlarger,
            told=told,
        )
        for each in sizes
    ]  # fmt: skip
    page, rows = patches_page(found), [asdict(each) for each in found]
    write_text(output / "patches.md", page)
    write_json(output / "patches.json", rows)
    say(rows, page, as_json=json_)
