"""Pictures of a fixed list of prompts and seeds, made once and left where they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.events import Event, RunDone
from hirescli.recipe import Recipe

if TYPE_CHECKING:
    from hirescli.planning.plan import Plan

_SHEET = Path(__file__).parent / "sheet_prompts.txt"
_TOGETHER = 64  # pictures that one loading of the model makes; their text states wait in memory


@dataclass(frozen=True)
class Wanted:
    """A picture to make.

    Attributes:
        name: Of its file, with the suffix .png.
        prompt: What it shows.
        seed: Of its noise.
    """

    name: str
    prompt: str
    seed: int


def numbered(prompts: Sequence[str], seed: int) -> list[Wanted]:
    """Pictures of prompts, named by their places; the place is added to the seed."""
    return [
        Wanted(f"{place:04d}.png", prompt, seed + place) for place, prompt in enumerate(prompts)
    ]


def sheet_prompts() -> list[str]:
    """The 24 prompts of `hires eval sheet`: every family once, ten of them twice."""
    return _SHEET.read_text(encoding="utf-8").splitlines()


def make_pictures(
    wanted: Sequence[Wanted],
    folder: Path,
    choices: dict[str, Any],
    *,
    told: Callable[[int], None] = lambda _: None,
) -> None:
    """Make pictures; those that stand there with the same recipe are left.

    Args:
        wanted: With names that differ.
        folder: For the pictures.
        choices: A partial recipe, with the size.
        told: Called with the number of pictures there are so far.

    Raises:
        RequestError: If a choice is wrong, or another picture is in the way.
        RunError: If a run fails; the same call goes on where it ended.
    """
    from hirescli.cascade.run import run
    from hirescli.planning.machine import Machine
    from hirescli.planning.plan import check_disk_together

    made = 0

    def count(_: object = None) -> None:
        nonlocal made
        made += 1
        told(made)

    def listener(event: Event) -> None:
        if isinstance(event, RunDone):
            count()

    machine = Machine.detect(with_devices=choices.get("device") != "cpu")
    for start in range(0, len(wanted), _TOGETHER):
        plans = []
        for each in wanted[start : start + _TOGETHER]:
            own = {"prompt": each.prompt, "seed": each.seed, "format": "png"}
            plan = _unmade(Recipe.from_fragments({**choices, **own}), folder / each.name)
            if plan is None:
                count()
            else:
                plans.append(plan.validate(machine, folder / each.name))
        check_disk_together(plans, machine)
        if plans:
            run(plans, listener)


def _unmade(recipe: Recipe, path: Path) -> Plan | None:
    """The plan of a picture; None if it stands there with the same recipe."""
    import hirescli
    from hirescli.runs.directory import clear_finished, finished

    plan = hirescli.plan(recipe)
    if not finished(path, plan.recipe):
        return plan
    clear_finished(path, plan.recipe)
    return None
