"""What `hires batch --dry-run` shows: what would be done with each job."""

from __future__ import annotations

import json
from typing import Any

from hirescli.cli.app import say
from hirescli.cli.batching.sorting import SortedJobs
from hirescli.cli.batching.telling import jobs_words
from hirescli.cli.batching.wrong import WrongJob
from hirescli.cli.streams import write_line
from hirescli.runs.batch import PlannedJob
from hirescli.units import format_bytes, format_seconds


def show(found: SortedJobs, *, as_json: bool) -> None:
    """Print what would be done with each job, as a table or as JSON lines."""
    rows = [(each, "to make") for each in found.todo]
    rows += [(each, "done") for each in found.finished]
    rows.sort(key=lambda row: row[0].job.index)
    if as_json:
        for each, state in rows:
            write_line(json.dumps(_planned_dict(each, state)))
        for wrong in found.wrong:
            write_line(json.dumps(_wrong_dict(wrong)))
        return
    from hirescli.cli.render import console, table

    shown = table(
        "job", "output", "size", "seed", "memory", "time", "state", right=("job", "time")
    )
    for each, state in rows:
        shown.add_row(*_cells(each), state)
    console().print(shown)
    for wrong in found.wrong:
        say(f"{wrong.job.where}: {wrong.reason}")
    seconds = sum(each.validated.plan.seconds for each in found.todo)
    console().print(f"{jobs_words(len(found.todo))} to make, about {format_seconds(seconds)}")


def _cells(each: PlannedJob) -> tuple[str, ...]:
    plan = each.validated.plan
    return (
        str(each.job.index),
        str(each.validated.output),
        f"{plan.recipe.width_px}x{plan.recipe.height_px}",
        str(plan.recipe.seed),
        format_bytes(plan.peak_memory_bytes),
        format_seconds(plan.seconds),
    )


def _planned_dict(each: PlannedJob, state: str) -> dict[str, Any]:
    plan = each.validated.plan
    return {
        "index": each.job.index,
        "line": each.job.line,
        "output": str(each.validated.output),
        "state": state,
        "seconds": plan.seconds,
        "peak_memory_bytes": plan.peak_memory_bytes,
        "disk_bytes": plan.disk_bytes,
        "recipe_hash": plan.recipe.hash,
        "recipe": plan.recipe.model_dump(mode="json"),
    }


def _wrong_dict(wrong: WrongJob) -> dict[str, Any]:
    return {
        "index": wrong.job.index,
        "line": wrong.job.line,
        "output": wrong.output_name,
        "state": "wrong",
        "error": wrong.reason,
    }
