"""`hires eval sheet`: the same 24 prompts and seeds of every model, on one sheet."""

from __future__ import annotations

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
    option,
    say,
    told,
)

_SIZE = "512"
_THUMB_PX = 256
_COLUMNS = 6


def sheet(
    output: Output,
    size: Annotated[
        str, option("--size", metavar="N|WxH", text=f"Size of the pictures. Default: {_SIZE}.")
    ] = _SIZE,
    seed: Seed = 0,
    model: Model = None,
    attention: Attention = None,
    adapter: Adapter = None,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Make pictures of 24 fixed prompts with fixed seeds, and a contact sheet of them.

    Every family of the built-in model is there once, ten of them twice. Written: the pictures and
    sheet.jpg.
    """
    from hirescli.evaluation.making import make_pictures, numbered, sheet_prompts
    from hirescli.output.sheet import entry, layout, write_sheet

    wanted = numbered(sheet_prompts(), seed)
    output.mkdir(parents=True, exist_ok=True)
    choices = given(
        size=size, model=model, attention=attention, adapter=adapter, steps=steps,
        guidance_scale=guidance_scale, device=device,
    )  # fmt: skip
    make_pictures(wanted, output, choices, told=lambda count: told("pictures", count))
    entries = [entry(output / each.name) for each in wanted]
    where = layout(entries, columns=_COLUMNS, thumb_px=_THUMB_PX)
    path = output / "sheet.jpg"
    write_sheet(entries, path, where, thumb_px=_THUMB_PX)
    found = {"path": str(path), "pictures": [str(each.path) for each in entries]}
    say(found, str(path), as_json=json_)
