"""`hires bench clear`: full attention against CLEAR's."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from hirescli.cli.benching.measured import Measured, whole_numbers
from hirescli.cli.options.machine import found_device
from hirescli.errors import RequestError
from hirescli.evaluation.charts import clear_chart
from hirescli.evaluation.page import section
from hirescli.evaluation.request import DTYPE, Request


def clear(asked: dict[str, Any]) -> Measured:
    """Measure one layer of FLUX's shape, every way in turns in this process."""
    device = asked.get("device")
    if device not in (None, "cuda", "cpu"):
        raise RequestError(f'device "{device}" cannot be measured; use cuda or cpu')
    device = device or found_device(None)
    dtype = "bfloat16" if device == "cuda" else DTYPE
    request = Request.of({"dtype": dtype, **asked})
    import torch

    from hirescli.evaluation.clear import GRIDS, clear_table, measure_clear

    grids = GRIDS[device]
    if "grids" in asked:
        grids = tuple(whole_numbers("grids", asked["grids"], example="64,128"))
    rows = measure_clear(
        grids, device=device, dtype=getattr(torch, request.dtype), threads=request.threads
    )
    named = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    text = section(
        "CLEAR's attention",
        command=f"hires bench clear{request.words}",
        paragraphs=[request.told(f"Device: {named}."), *clear_table(rows)],
    )
    facts = request.facts() | {"device": device, "rows": [asdict(row) for row in rows]}
    return Measured(text, facts, partial(clear_chart, rows=rows))
