"""`hires bench gpu`: one denoising step and one decode of SDXL's real shape."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from functools import partial
from typing import Any

from hirescli.cli.benching.measured import Measured, command, whole_numbers
from hirescli.errors import RequestError
from hirescli.evaluation.charts import gpu_chart


def gpu(asked: dict[str, Any]) -> Measured:
    """Measure every way, each in a process of its own on a GPU."""
    from hirescli.evaluation.gpu import SIZES_PX, gpu_section, measure

    device = asked.get("device", "cuda")
    if device not in ("cuda", "cpu"):
        raise RequestError(f'device "{device}" cannot be measured; use cuda, or cpu to try it')
    sizes = asked.get("sizes", ",".join(map(str, SIZES_PX)))
    sizes_px = whole_numbers("sizes", sizes, example="1024,2048")
    rows = measure(sizes_px, device, shape="sdxl" if device == "cuda" else "tiny")
    ran = f"{date.today().isoformat()}."
    text = gpu_section(rows, device=device, ran=ran, command=command("gpu", asked))
    facts = {"device": device, "rows": [asdict(row) for row in rows]}
    return Measured(text, facts, partial(gpu_chart, rows=rows))
