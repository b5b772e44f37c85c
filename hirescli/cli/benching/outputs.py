"""`hires bench outputs`: every format of output."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from hirescli.cli.benching.measured import Measured, ran_here
from hirescli.errors import RequestError
from hirescli.evaluation.charts import outputs_chart
from hirescli.evaluation.page import machine, section
from hirescli.evaluation.request import SIZE
from hirescli.units import parse_size


def outputs(asked: dict[str, Any]) -> Measured:
    """Measure every format made from a spool, each in a process of its own."""
    from hirescli.evaluation.outputs import output_runs, outputs_table

    sizes = [parse_size(size) for size in asked.get("size", [SIZE])]
    for width_px, height_px in sizes:
        if width_px != height_px:
            raise RequestError(
                f"`hires bench outputs` makes squares, not {width_px}x{height_px}; give one side"
            )
    runs = [run for side_px, _ in sizes for run in output_runs(side_px)]
    words = "".join(f" --size {side_px}" for side_px, _ in sizes)
    text = section(
        "Outputs",
        command=f"hires bench outputs{words}",
        paragraphs=[ran_here(), *outputs_table(runs)],
    )
    facts = {"machine": machine(), "runs": [asdict(run) for run in runs]}
    return Measured(text, facts, partial(outputs_chart, runs=runs))
