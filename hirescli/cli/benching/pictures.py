"""`hires bench builtin` and `hires bench batch`: whole pictures of the built-in model."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from hirescli.cli.benching.measured import Measured, command, ran_here
from hirescli.cli.benching.options import BATCH_SIZES, PICTURE_REPEAT, PICTURE_SIZES, PROMPT
from hirescli.evaluation.charts import batch_chart, pictures_chart
from hirescli.evaluation.page import machine, section
from hirescli.evaluation.tables import batch_table, pictures_table
from hirescli.units import parse_size


def builtin(asked: dict[str, Any]) -> Measured:
    """Measure pictures of several sizes, each in a process of its own."""
    from hirescli.evaluation.benchmark import help_seconds, image_run

    repeat, prompt = asked.get("repeat", PICTURE_REPEAT), asked.get("prompt", PROMPT)
    sizes = _sizes(asked, PICTURE_SIZES)
    for size in sizes:
        parse_size(size)  # refused before the first is made
    fast = help_seconds()
    runs = [image_run(["-m", "builtin", "-p", prompt, "--size", s], repeat=repeat) for s in sizes]
    ran = (
        f"{ran_here()}\n"
        f'Prompt: "{prompt}". Runs of each size: {repeat}; the slowest counts.\n'
        f"`hires --help`: {fast:.2f} s (the fastest of five)."
    )
    text = section(
        "Pictures of the built-in model",
        command="hires bench builtin",
        paragraphs=[ran, *pictures_table(runs)],
    )
    facts = {"machine": machine(), "help_seconds": fast, "runs": [asdict(run) for run in runs]}
    return Measured(text, facts, partial(pictures_chart, runs=runs))


def batch(asked: dict[str, Any]) -> Measured:
    """Measure batches, and what goes beside making their pictures."""
    from hirescli.evaluation.batching import JOBS, batch_run

    sizes = [parse_size(size) for size in _sizes(asked, BATCH_SIZES)]
    runs = [batch_run(*size) for size in sizes]
    text = section(
        "Batches of the built-in model",
        command=command("batch", asked),
        paragraphs=[f"{ran_here()} Jobs: {JOBS}.", *batch_table(runs)],
    )
    rows = [asdict(run) | {"outside_share": run.outside_share} for run in runs]
    return Measured(text, {"machine": machine(), "runs": rows}, partial(batch_chart, runs=runs))


def _sizes(asked: dict[str, Any], default: str) -> list[str]:
    return [size.strip() for size in asked.get("sizes", default).split(",")]
