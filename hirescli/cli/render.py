"""What people see: consoles, and tables of plans and results."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hirescli.planning.print_size import printed_words
from hirescli.units import format_bytes, format_flops, format_pixels, format_seconds

if TYPE_CHECKING:
    from hirescli.planning.cost import StageCost
    from hirescli.planning.plan import Plan

_PLAIN_WIDTH = 100  # where no terminal says how wide it is


def console(stream: TextIO | None = None) -> Console:
    """A console on stdout or the given stream: no markup, no colour unless a terminal shows it."""
    stream = stream or sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    plain = "NO_COLOR" in os.environ
    return Console(
        file=stream, width=width, no_color=plain, highlight=False, markup=False, emoji=False,
        soft_wrap=False,
    )  # fmt: skip


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; the columns named in `right` are aligned to the right."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def plan_table(plan: Plan) -> Table:
    """The stages of a plan with size, steps, memory and time."""
    numbers = ("steps", "strength", "guidance", "memory", "disk", "time")
    made = table("stage", "size", "attention", *numbers, right=numbers)
    for cost in plan.stage_costs:
        made.add_row(*_stage_row(cost))
    return made


def schedule_table(plan: Plan) -> Table:
    """The schedules of the last stage, which is the largest: what each call does."""
    numbers = ("calls", "passes", "bands", "memory", "disk", "arithmetic", "time")
    made = table("last stage", *numbers, right=numbers)
    for each in plan.stage_costs[-1].components:
        schedule = each.schedule
        made.add_row(
            each.name,
            str(each.calls),
            str(len(schedule.passes)),
            f"{-(-schedule.ops[0].rows // schedule.rows)} of {schedule.rows} rows",
            format_bytes(each.memory_bytes),
            format_bytes(each.disk_bytes),
            f"{format_flops(schedule.flops)}, x{schedule.flops / schedule.plain_flops:.2f}",
            format_seconds(schedule.seconds),
        )
    return made


def plan_lines(plan: Plan, output: Path) -> list[str]:
    """What a plan needs in all, one fact a line."""
    recipe = plan.recipe
    place = "beside the output" if plan.spill is None else f"in {plan.spill}"
    return [
        f"output    {output} ({recipe.format}, "
        f"{format_pixels(recipe.width_px, recipe.height_px)}, {recipe.bits} bits, "
        f"seed {recipe.seed})",
        *(f"and       {each.path} ({each.recipe(recipe).format})" for each in plan.also),
        f"model     {plan.card.name}, revision {recipe.revision}, {recipe.dtype}, "
        f"{recipe.scheduler}, method {recipe.method}",
        f"memory    {_memory(plan)}; bands of {plan.rows} latent rows",
        f"disk      {format_bytes(plan.spool_bytes)} beside the output, "
        f"{format_bytes(plan.spill_bytes)} of values {place}",
        f"print     {printed_words(recipe)}",
        f"time      about {format_seconds(plan.seconds)} ({format_flops(plan.flops)})",
    ]


def _memory(plan: Plan) -> str:
    host, device = (format_bytes(plan.store_bytes[name]) for name in ("host", "device"))
    budget = f"of a budget of {format_bytes(plan.budgets.memory_bytes)}"
    if plan.recipe.device == "cpu":
        return f"host {host} {budget}; device {device}"
    return f"device {device} {budget}, weights on the {plan.weights}; host {host}"


def _stage_row(cost: StageCost) -> tuple[str, ...]:
    stage = cost.stage
    return (
        f"{stage.index + 1} {stage.kind}",
        f"{stage.width_px}x{stage.height_px}",
        stage.attention,
        str(stage.steps),
        "" if stage.strength is None else f"{stage.strength:g}",
        f"{stage.guidance_scale:g}",
        format_bytes(cost.memory.peak_bytes),
        format_bytes(cost.spill_bytes),
        format_seconds(cost.seconds),
    )
