"""`hires bench`: measure whole runs on this machine."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hirescli.errors import RequestError

if TYPE_CHECKING:
    from hirescli.evaluation.benchmark import ImageRun

_PROMPT = "snowy mountains above a lake at sunset"


def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model to measure: builtin.", show_default=False)
    ],
    sizes: Annotated[
        str,
        typer.Option(
            "--sizes", metavar="N,WxH,...", help="Sizes in pixels, as --size takes them."
        ),
    ] = "512,1024,2048",
    repeat: Annotated[
        int,
        typer.Option(
            "--repeat",
            min=1,
            max=100,
            metavar="N",
            help="Runs of each size, 1 to 100; the slowest counts, and their bytes are compared.",
        ),
    ] = 2,
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="TEXT", help="What the pictures show.")
    ] = _PROMPT,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the table here too, as Markdown. Default: not written.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON; memory in bytes.")] = False,
) -> None:
    """Make pictures of several sizes, each in a process of its own; print a Markdown table.

    Seconds are of the whole command, loading included; peak memory is the process's, as the
    system measured it; both stand beside what the plan had said.
    """  # fmt: skip
    from hirescli.evaluation.benchmark import help_seconds, image_run
    from hirescli.models.registry import find_card
    from hirescli.units import parse_size

    find_card(model)
    asked = [size.strip() for size in sizes.split(",")]
    for size in asked:
        parse_size(size)
    if output is not None and not output.parent.is_dir():
        raise RequestError(f"output folder {output.parent} does not exist; make it first")
    fast = help_seconds()
    runs = [image_run(["-m", model, "-p", prompt, "--size", s], repeat=repeat) for s in asked]
    page = markdown(runs, prompt=prompt, repeat=repeat, help_seconds=fast)
    if output is not None:
        output.write_text(page, encoding="utf-8")
    print(json.dumps(_facts(runs, fast)) if json_ else page)


def markdown(runs: Sequence[ImageRun], *, prompt: str, repeat: int, help_seconds: float) -> str:
    """The page with the machine, the table, and what other programs read."""
    from hirescli.units import format_bytes

    rows = [
        f"| {run.width_px}x{run.height_px} | {run.stages} | {run.seconds:.1f} s | "
        f"{run.planned_seconds:.1f} s | {format_bytes(run.peak_rss_bytes)} | "
        f"{format_bytes(run.planned_peak_bytes)} | {format_bytes(run.file_bytes)} | "
        f"{_yes(run.same_bytes)} |"
        for run in runs
    ]
    read = [
        f"| {run.width_px}x{run.height_px} | {' | '.join(run.readers.values())} |" for run in runs
    ]
    return "\n".join(
        [
            "# Benchmarks of the built-in model",
            "",
            "Written by `hires bench builtin`; do not edit by hand.",
            "",
            f"{date.today().isoformat()}. Machine: {_machine()}.",
            f'Prompt: "{prompt}". Runs of each size: {repeat}; the slowest counts.',
            f"`hires --help`: {help_seconds:.2f} s (the fastest of five).",
            "",
            "| size | stages | time | planned | peak memory | planned | file | same bytes again |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "Time is the whole command's, loading included. Peak memory is the resident set's",
            "maximum, measured by the system. The levels of each file, as read back:",
            "",
            "| size | tifffile | libvips | Pillow |",
            "|---|---|---|---|",
            *read,
            "",
        ]
    )


def _facts(runs: Sequence[ImageRun], help_seconds: float) -> dict[str, Any]:
    return {
        "machine": _machine(),
        "help_seconds": help_seconds,
        "runs": [asdict(run) for run in runs],
    }


def _machine() -> str:
    from importlib.metadata import version

    from hirescli.planning.machine import Machine
    from hirescli.units import format_bytes

    machine = Machine.detect()
    return (
        f"{_processor()}, {machine.cores} cores, {format_bytes(machine.memory_bytes)}, "
        f"{platform.system()}, Python {platform.python_version()}, torch {version('torch')}"
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _yes(same: bool | None) -> str:
    return {None: "not tried", True: "yes", False: "NO"}[same]
