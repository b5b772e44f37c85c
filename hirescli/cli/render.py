"""What people see: consoles, and tables of plans and results."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hirescli.planning.print_size import printed_words
from hirescli.units import format_bytes, format_flops, format_pixels, format_seconds

if TYPE_CHECKING:
    from hirescli.planning.cost import StageCost
    from hirescli.planning.plan import Plan

_PLAIN_WIDTH = 100  # where no terminal says how wide it is


def console(stream: TextIO | None = None) -> Console:
    """A console on stdout or the given stream: no markup, no styles unless a terminal shows them
    and NO_COLOR is not set.
    """
    stream = stream or sys.stdout
    width = None if stream.isatty() else _PLAIN_WIDTH
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        file=stream, width=width, color_system=None if plain else "auto", highlight=False,
        markup=False, emoji=False, soft_wrap=False,
    )  # fmt: skip


class Sheet:
    """A table; on a terminal too narrow for its words and numbers, a block of lines for each row.

    Args:
        columns: Their heads.
        right: Those aligned to the right.
    """

    def __init__(self, columns: Sequence[str], right: Sequence[str]) -> None:
        self._columns = columns
        self._rows: list[tuple[str, ...]] = []
        self._table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in columns:
            side: Literal["left", "right"] = "right" if column in right else "left"
            self._table.add_column(column, justify=side, overflow="fold")

    def add_row(self, *cells: str) -> None:
        """One cell for each column."""
        self._rows.append(cells)
        self._table.add_row(*cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What Rich prints of it."""
        # Asked at any width, the least is that of the longest word of each column.
        least = Measurement.get(console, options.update(max_width=10_000), self._table).minimum
        if least <= options.max_width:
            yield self._table
            return
        wide = max(map(len, self._columns))
        for number, cells in enumerate(self._rows):
            lines = zip(self._columns, cells, strict=True)
            text = "\n".join(f"{head:<{wide}}  {cell}" for head, cell in lines if cell)
            yield Text(f"\n{text}" if number else text)


def table(*columns: str, right: Sequence[str] = ()) -> Sheet:
    """An empty table; the columns named in `right` are aligned to the right."""
    return Sheet(columns, right)


def plan_table(plan: Plan) -> Sheet:
    """The stages of a plan with size, steps, memory and time."""
    numbers = ("steps", "strength", "guidance", "memory", "disk", "time")
    made = table("stage", "size", "attention", *numbers, right=numbers)
    for cost in plan.stage_costs:
        made.add_row(*_stage_row(cost))
    return made


def schedule_table(plan: Plan) -> Sheet:
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
