"""The plan: what a recipe will take, checked against a machine, and only then run."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hirescli.errors import RequestError
from hirescli.events import Listener
from hirescli.planning import cost
from hirescli.planning.card import Card
from hirescli.planning.cascade import (
    Stage,
    choices_without_effect,
    native_warning,
    resolve,
    stages,
)
from hirescli.planning.cost import Budgets, ComponentCost, StageCost
from hirescli.planning.formats import check_format, check_options, format_for
from hirescli.planning.machine import Machine, default_budget
from hirescli.planning.schedule import BudgetError
from hirescli.recipe import Recipe
from hirescli.units import format_bytes

T = TypeVar("T")
_MOST_NAME_BYTES = 255  # of common file systems
_BESIDE_SUFFIX = ".partial"  # the longest name that is written beside the output
_VALIDATED = object()
_WORK_BYTES = 170 * 10**6  # of default memory beside the model
_ANY_DISK = 1 << 62


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a run before anything heavy is loaded.

    Attributes:
        recipe: With no choice left open.
        card: Of the recipe's model.
        stage_costs: The stages in order, each with its memory, FLOPs and seconds.
        rows: Band height of every component, in latent rows.
        budgets: What the run may use.
        spill: Folder for values on disk; None: the run's own, beside the output.
        peak_memory_bytes: Predicted peak of the whole process.
        spool_bytes: Predicted peak of spools and the output, beside the output.
        spill_bytes: Predicted peak of values on disk.
        flops, seconds: Sums over the stages; the seconds begin with loading.
        warnings: What the user should know before the run.
    """

    recipe: Recipe
    card: Card
    stage_costs: tuple[StageCost, ...]
    rows: int
    budgets: Budgets
    spill: Path | None
    peak_memory_bytes: int
    spool_bytes: int
    spill_bytes: int
    flops: float
    seconds: float
    warnings: tuple[str, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages without their costs."""
        return tuple(row.stage for row in self.stage_costs)

    @property
    def disk_bytes(self) -> int:
        """Predicted peak of disk use beside the output."""
        return self.spool_bytes + (self.spill_bytes if self.spill is None else 0)

    @property
    def store_bytes(self) -> dict[str, int]:
        """Predicted peak of every store; this version computes on the host only."""
        return {"device": 0, "host": self.peak_memory_bytes, "disk": self.spill_bytes}

    def to_dict(self) -> dict[str, Any]:
        """The plan in JSON's types; sizes in pixels, memory in bytes."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_hash": self.recipe.hash,
            "stages": [_row(row) for row in self.stage_costs],
            "rows": self.rows,
            "budget_bytes": self.budgets.memory_bytes,
            "spill": None if self.spill is None else str(self.spill),
            "disk_bytes": self.disk_bytes,
            "store_bytes": self.store_bytes,
            "flops": self.flops,
            "seconds": self.seconds,
            "warnings": list(self.warnings),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The plan as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    def validate(self, machine: Machine, output: Path, overwrite: bool = False) -> ValidatedPlan:
        """Check the plan against a machine and an output; nothing is written.

        Raises:
            RequestError: If the memory budget or the disk is too small, the format cannot hold
                the size, or the output's place cannot be written.
        """
        format_for(output, self.recipe.format)
        check_format(self.recipe.format, self.recipe.width_px, self.recipe.height_px)
        check_options(self.recipe)
        _check_output(output, overwrite)
        self._check_memory(machine)
        self._check_disk(machine, output)
        return ValidatedPlan(self, output, overwrite, _VALIDATED)

    def _check_memory(self, machine: Machine) -> None:
        peak = format_bytes(self.peak_memory_bytes)
        if self.peak_memory_bytes > machine.memory_bytes:
            raise RequestError(
                f"needs {peak} of memory, this machine has {format_bytes(machine.memory_bytes)}; "
                "use a smaller --size"
            )

    def _check_disk(self, machine: Machine, output: Path) -> None:
        # What a killed run of the same output left there is used again.
        free = machine.disk_free_bytes(output.parent) + _left_bytes(output)
        if self.disk_bytes > free:
            raise RequestError(
                f"needs {format_bytes(self.disk_bytes)} of disk beside {output}, "
                f"{format_bytes(free)} are free; free some or choose another folder with -o"
            )
        if self.spill is not None:
            _check_spill(self.spill, self.spill_bytes, machine)


@dataclass(frozen=True)
class ValidatedPlan:
    """A plan that this machine can run. Only `Plan.validate` makes one."""

    plan: Plan
    output: Path
    overwrite: bool
    _key: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        assert self._key is _VALIDATED, "use Plan.validate"

    @property
    def recipe(self) -> Recipe:
        """The plan's recipe."""
        return self.plan.recipe

    def execute(
        self,
        runner: Callable[[Sequence[ValidatedPlan], Listener | None], Sequence[T]],
        listener: Listener | None = None,
    ) -> T:
        """Run the plan with `hirescli.cascade.run.run`: given, since planning imports no torch."""
        (result,) = runner([self], listener)
        return result


def check_disk_together(plans: Sequence[ValidatedPlan], machine: Machine) -> None:
    """Check that the disk holds several images, made one after the other.

    Raises:
        RequestError: If one finds too little room beside the finished ones before it.
    """
    finished: dict[Path, int] = {}
    for number, validated in enumerate(plans, start=1):
        folder = validated.output.parent
        needed = finished.get(folder, 0) + validated.plan.disk_bytes
        left = sum(_left_bytes(p.output) for p in plans[:number] if p.output.parent == folder)
        free = machine.disk_free_bytes(folder) + left
        if needed > free:
            raise RequestError(
                f"needs {format_bytes(needed)} of disk in {folder} for the first {number} of "
                f"{len(plans)} images, {format_bytes(free)} are free; make fewer at once, free "
                "some or choose another folder with -o"
            )
        finished[folder] = finished.get(folder, 0) + cost.output_bytes(validated.recipe)


def make_plan(
    recipe: Recipe,
    card: Card,
    *,
    memory_bytes: int | None = None,
    host_memory_bytes: int | None = None,
    spill: Path | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Plan a recipe under a budget. What the machine has is checked in `Plan.validate`.

    Where the recipe leaves its threads open, they are the cores of the machine.

    Args:
        recipe: What is asked for.
        card: Of the recipe's model.
        memory_bytes: Budget of the whole process; None: `default_memory`.
        host_memory_bytes: Budget of the host beside a GPU; on a CPU it says nothing.
        spill: Folder for values on disk; None: the run's own, beside the output.
        machine: Where it shall run; None: this machine.

    Raises:
        RequestError: If the size, revision, scheduler or format does not work, or the budget
            cannot hold one band.
    """
    machine = machine or Machine.detect()
    asked = Recipe.from_fragments(recipe.model_dump())  # `model_copy` checks nothing
    recipe = resolve(asked, card)
    check_format(recipe.format, recipe.width_px, recipe.height_px)
    check_options(recipe)
    recipe = recipe.model_copy(update={"threads": recipe.threads or machine.cores})
    all_stages = stages(recipe, card)
    budgets = Budgets(memory_bytes or default_memory(card, machine), _ANY_DISK)
    try:
        rows, costs = _costs(all_stages, card, recipe, budgets)
    except BudgetError as error:
        needed_bytes = cost.with_latents_bytes(error.least_bytes, card)
        if memory_bytes is not None or needed_bytes > default_budget(machine):
            raise _over_budget(needed_bytes, budgets, recipe.rows) from error
        budgets = Budgets(needed_bytes, _ANY_DISK)
        rows, costs = _costs(all_stages, card, recipe, budgets)
    recipe = recipe.model_copy(update={"rows": rows})
    return Plan(
        recipe=recipe,
        card=card,
        stage_costs=costs,
        rows=rows,
        budgets=budgets,
        spill=spill,
        peak_memory_bytes=max(row.memory.peak_bytes for row in costs),
        spool_bytes=cost.disk_bytes(all_stages, recipe),
        spill_bytes=max(row.spill_bytes for row in costs),
        flops=sum(row.flops for row in costs),
        seconds=card.load_seconds + sum(row.seconds for row in costs),
        warnings=_warnings(asked, card, all_stages, host_memory_bytes),
    )


def _costs(
    all_stages: tuple[Stage, ...], card: Card, recipe: Recipe, budgets: Budgets
) -> tuple[int, tuple[StageCost, ...]]:
    """The band height, and all stages with what they take."""
    rows = recipe.rows or cost.band_rows(all_stages, card=card, recipe=recipe, budgets=budgets)
    costs = [
        cost.stage_cost(stage, card=card, recipe=recipe, rows=rows, budgets=budgets)
        for stage in reversed(all_stages)  # refused are budgets for the largest: enough for all
    ]
    return rows, tuple(reversed(costs))


def default_memory(card: Card, machine: Machine) -> int:
    """Bytes a run may use when nothing else is said: the model and a fixed room to work in.

    Pictures of every size are so made in about the same memory; a plan takes what one band
    takes where that is more. At most the machine's default budget.
    """
    return min(default_budget(machine), card.base_memory_bytes + _WORK_BYTES)


def _over_budget(needed_bytes: int, budgets: Budgets, rows: int | None) -> RequestError:
    lower = " or fewer --rows" if rows is not None and rows > 1 else ""
    return RequestError(
        f"needs at least {format_bytes(needed_bytes)} of memory for one band, the budget is "
        f"{format_bytes(budgets.memory_bytes)}; use --memory {_rounded_up_gb(needed_bytes)} "
        f"(memory=...){lower} or a smaller --size"
    )


def _warnings(
    asked: Recipe, card: Card, all_stages: tuple[Stage, ...], host_memory_bytes: int | None
) -> tuple[str, ...]:
    found = [
        card.foreign_prompt_warning(asked.prompt),
        native_warning(asked.width_px, asked.height_px, card),
        *choices_without_effect(asked, card, all_stages),
    ]
    if host_memory_bytes is not None:
        found.append("--host-memory has no effect: on a CPU, --memory is the whole process's")
    return tuple(warning for warning in found if warning is not None)


def _row(row: StageCost) -> dict[str, Any]:
    memory = asdict(row.memory) | {"peak_bytes": row.memory.peak_bytes}
    return asdict(row.stage) | {
        "memory": memory,
        "spill_bytes": row.spill_bytes,
        "latents_store": row.latents_store,
        "components": [_component(each) for each in row.components],
        "flops": row.flops,
        "seconds": row.seconds,
    }


def _component(each: ComponentCost) -> dict[str, Any]:
    schedule = each.schedule
    return {
        "name": each.name,
        "calls": each.calls,
        "passes": len(schedule.passes),
        "band_rows": schedule.rows,
        "store_bytes": schedule.peak_bytes,
        "moved_bytes": schedule.moved_bytes,
        "flops": schedule.flops,
        "plain_flops": schedule.plain_flops,
        "seconds": schedule.seconds,
    }


def _rounded_up_gb(amount_bytes: int) -> str:
    return f"{-(-amount_bytes // 10**8) / 10:g}GB"


def _left_bytes(output: Path) -> int:
    run = output.with_name(output.name + ".run")
    if not run.is_dir():
        return 0
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


def _check_output(output: Path, overwrite: bool) -> None:
    if "\0" in str(output):
        raise RequestError("the output name holds a NUL character; remove it")
    name_bytes = len((output.name + _BESIDE_SUFFIX).encode(errors="surrogateescape"))
    if name_bytes > _MOST_NAME_BYTES:
        raise RequestError(
            f"the output name has {len(output.name.encode(errors='surrogateescape'))} bytes, "
            f"at most {_MOST_NAME_BYTES - len(_BESIDE_SUFFIX)} work; choose a shorter one"
        )
    _check_folder(output.parent)
    if os.path.isdir(output):
        raise RequestError(f"output {output} is a folder; add a file name to it")
    if os.path.lexists(output) and not overwrite:
        raise RequestError(
            f"output {output} exists; use --overwrite (overwrite=True), or choose another name"
        )
    _check_writable(output.parent)


def _check_spill(spill: Path, needed_bytes: int, machine: Machine) -> None:
    if not spill.is_dir():
        raise RequestError(f"--spill {spill} is no folder; make it, or choose another")
    _check_writable(spill, "--spill")
    free = machine.disk_free_bytes(spill)
    if needed_bytes > free:
        raise RequestError(
            f"needs {format_bytes(needed_bytes)} of disk in --spill {spill}, "
            f"{format_bytes(free)} are free; free some, choose another folder or give more "
            "--memory"
        )


def _check_folder(folder: Path) -> None:
    try:
        is_dir = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError as error:
        raise RequestError(
            f"output folder {folder} does not exist; make it, or choose another"
        ) from error
    except OSError as error:  # a part of it is a file, or its name is longer than any can be
        raise RequestError(
            f"output folder {folder} cannot be used ({error.strerror}); choose another with -o"
        ) from error
    if not is_dir:
        raise RequestError(f"output folder {folder} is a file; choose a folder")


def _check_writable(folder: Path, flag: str = "-o") -> None:
    """Try it: permission bits say nothing about read-only mounts, nor to an administrator."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"folder {folder} cannot be written ({error.strerror}); choose another with {flag}"
        ) from error
