"""The plan: what a recipe will take, checked against a machine, and only then run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hirescli.errors import RequestError
from hirescli.events import Listener
from hirescli.planning import cost
from hirescli.planning.also import AlsoFile, check_apart
from hirescli.planning.budgets import fitted
from hirescli.planning.card import Card
from hirescli.planning.cascade import Stage, choices_without_effect, resolve, stages
from hirescli.planning.choices import stretched
from hirescli.planning.cost import Budgets, ComponentCost, StageCost
from hirescli.planning.formats import check_format, check_options, format_for, layout_for
from hirescli.planning.machine import Machine
from hirescli.planning.output_cost import encoder_bytes, output_bytes
from hirescli.planning.places import check_output, check_spill, left_bytes
from hirescli.planning.print_size import printed
from hirescli.planning.sizes import native_warning
from hirescli.recipe import Recipe
from hirescli.units import format_bytes

T = TypeVar("T")
_VALIDATED = object()


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
        store_bytes: Predicted peak of "device" (0 where none is used), "host" (the whole
            process) and "disk" (values only).
        spool_bytes: Predicted peak of the run directory and the output, beside the output.
        flops, seconds: Sums over the stages; the seconds begin with loading.
        warnings: What the user should know before the run.
        also: Further files of the picture.
    """

    recipe: Recipe
    card: Card
    stage_costs: tuple[StageCost, ...]
    rows: int
    budgets: Budgets
    spill: Path | None
    store_bytes: dict[str, int]
    spool_bytes: int
    flops: float
    seconds: float
    warnings: tuple[str, ...]
    also: tuple[AlsoFile, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages without their costs."""
        return tuple(row.stage for row in self.stage_costs)

    @property
    def disk_bytes(self) -> int:
        """Predicted peak of disk use beside the output."""
        return self.spool_bytes + (self.spill_bytes if self.spill is None else 0)

    @property
    def peak_memory_bytes(self) -> int:
        """Predicted peak of the whole process."""
        return self.store_bytes["host"]

    @property
    def spill_bytes(self) -> int:
        """Predicted peak of values on disk."""
        return self.store_bytes["disk"]

    @property
    def weights(self) -> str:
        """Where the weights of denoiser and autoencoder are while bands are computed."""
        if self.budgets.host_bytes is None:
            return "host"
        return "host, loaded for each pass" if self.budgets.loads_weights else "device"

    def to_dict(self) -> dict[str, Any]:
        """The plan in JSON's types; sizes in pixels, memory in bytes."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "recipe_hash": self.recipe.hash,
            "stages": [_row(row) for row in self.stage_costs],
            "print": printed(self.recipe),
            "also": [str(each.path) for each in self.also],
            "rows": self.rows,
            "budget_bytes": self.budgets.memory_bytes,
            "weights": self.weights,
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
        if self.recipe.format == "tiles":
            layout_for(output, self.recipe.tile_layout)
        check_format(self.recipe.format, self.recipe.width_px, self.recipe.height_px)
        check_options(self.recipe)
        paths = [each.path for each in self.also]
        check_apart([output, *paths])
        for path in (output, *paths):
            check_output(path, overwrite)
        self._check_memory(machine)
        self._check_disk(machine, output)
        return ValidatedPlan(self, output, overwrite, _VALIDATED)

    def _check_memory(self, machine: Machine) -> None:
        peak = format_bytes(self.peak_memory_bytes)
        self._check_device(machine)
        if self.peak_memory_bytes > machine.memory_bytes:
            # Beside a GPU the host takes what it is allowed; else it is all that is needed.
            given = self.budgets.host_bytes is not None
            lower = "a lower --host-memory or " if given else ""
            raise RequestError(
                f"needs {peak} of memory, this machine has {format_bytes(machine.memory_bytes)}; "
                f"use {lower}a smaller --size"
            )

    def _check_device(self, machine: Machine) -> None:
        needed = self.store_bytes["device"]
        if needed and needed > machine.devices[0].memory_bytes:
            device = machine.devices[0]
            raise RequestError(
                f"needs {format_bytes(needed)} of GPU memory, {device.name} has "
                f"{format_bytes(device.memory_bytes)}; use a lower --memory"
            )

    def _check_disk(self, machine: Machine, output: Path) -> None:
        # What a killed run of the same output left there is used again.
        free = machine.disk_free_bytes(output.parent) + left_bytes(output)
        if self.disk_bytes > free:
            raise RequestError(
                f"needs {format_bytes(self.disk_bytes)} of disk beside {output}, "
                f"{format_bytes(free)} are free; free some or choose another folder with -o"
            )
        self._check_folders(machine, output)
        if self.spill is not None:
            check_spill(self.spill, self.spill_bytes, machine)

    def _check_folders(self, machine: Machine, output: Path) -> None:
        """Further files in other folders, whose disks may be others."""
        for folder in {each.path.parent for each in self.also} - {output.parent}:
            files = [each for each in self.also if each.path.parent == folder]
            needed = sum(output_bytes(each.recipe(self.recipe)) for each in files)
            free = machine.disk_free_bytes(folder)
            if needed > free:
                raise RequestError(
                    f"needs {format_bytes(needed)} of disk in {folder}, {format_bytes(free)} are "
                    "free; free some or choose another folder"
                )


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

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The output and the further files."""
        return (self.output, *(each.path for each in self.plan.also))

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
    free_bytes: dict[Path, int] = {}
    for number, validated in enumerate(plans, start=1):
        folder = validated.output.parent
        needed = finished.get(folder, 0) + validated.plan.disk_bytes
        if folder not in free_bytes:
            free_bytes[folder] = machine.disk_free_bytes(folder)
        free = free_bytes[folder] = free_bytes[folder] + left_bytes(validated.output)
        if needed > free:
            raise RequestError(
                f"needs {format_bytes(needed)} of disk in {folder} for the first {number} of "
                f"{len(plans)} images, {format_bytes(free)} are free; make fewer at once, free "
                "some or choose another folder with -o"
            )
        finished[folder] = finished.get(folder, 0) + sum(
            output_bytes(recipe) for recipe in recipes_of(validated.plan)
        )


def recipes_of(plan: Plan) -> list[Recipe]:
    """The recipes of all files of a picture, that of the output the first."""
    return [plan.recipe, *(each.recipe(plan.recipe) for each in plan.also)]


def make_plan(
    recipe: Recipe,
    card: Card,
    *,
    memory_bytes: int | None = None,
    host_memory_bytes: int | None = None,
    spill: Path | None = None,
    machine: Machine | None = None,
    also: tuple[AlsoFile, ...] = (),
) -> Plan:
    """Plan a recipe under a budget. What the machine has is checked in `Plan.validate`.

    Where the recipe leaves its device open, it is the machine's first GPU if it has one; threads
    left open are its cores.

    Args:
        recipe: What is asked for, with what is known of the files that it names.
        card: Of the recipe's model.
        memory_bytes: Budget of the whole process, or of the GPU; None: `default_memory`.
        host_memory_bytes: Budget of the host beside a GPU; on a CPU it says nothing.
        spill: Folder for values on disk; None: the run's own, beside the output.
        machine: Where it shall run; None: this machine.
        also: Further files, of `with_also`.

    Raises:
        RequestError: If the size, revision, scheduler or format does not work, or the budget
            cannot hold one band.
    """
    machine = machine or Machine.detect(with_devices=recipe.device != "cpu")
    asked = Recipe.from_fragments(recipe.model_dump())  # `model_copy` checks nothing
    recipe = resolve(_placed(asked, card, machine), card)
    check_format(recipe.format, recipe.width_px, recipe.height_px)
    check_options(recipe)
    all_stages = stages(recipe, card)
    budgets, rows, costs = fitted(
        all_stages, card, recipe, machine,
        memory_bytes=memory_bytes, host_memory_bytes=host_memory_bytes,
    )  # fmt: skip
    recipe = recipe.model_copy(update={"rows": rows})
    files = [recipe, *(each.recipe(recipe) for each in also)]
    return Plan(
        recipe=recipe,
        card=card,
        stage_costs=costs,
        rows=rows,
        budgets=budgets,
        spill=spill,
        store_bytes=_store_bytes(costs, card, files, budgets, memory_bytes),
        spool_bytes=cost.disk_bytes(costs, card, recipe, files[1:]),
        flops=sum(row.flops for row in costs),
        seconds=card.load_seconds + sum(row.seconds for row in costs),
        warnings=_warnings(asked, card, all_stages, budgets, host_memory_bytes),
        also=also,
    )


def _placed(recipe: Recipe, card: Card, machine: Machine) -> Recipe:
    """The recipe with the device and the threads that it runs on, in numbers quick on these."""
    if recipe.device == "cuda" and not machine.devices:
        raise RequestError(
            "--device cuda: this machine has no GPU that nvidia-smi names; use --device cpu"
        )
    device = recipe.device or ("cuda" if machine.devices else "cpu")
    threads = recipe.threads or machine.cores
    slow = device == "cpu" and not machine.fast_bfloat16
    dtype = recipe.dtype or ("float32" if slow else card.dtype)
    return recipe.model_copy(update={"device": device, "threads": threads, "dtype": dtype})


def _store_bytes(
    costs: tuple[StageCost, ...],
    card: Card,
    files: list[Recipe],
    budgets: Budgets,
    memory_bytes: int | None,
) -> dict[str, int]:
    """Predicted peak of every store, with what stands there beside values."""
    recipe = files[0]
    computing = max(row.memory.peak_bytes for row in costs)
    encoding = _encoding_bytes(card, files, memory_bytes)
    disk = max(row.spill_bytes for row in costs)
    if budgets.host_bytes is None:
        return {"device": 0, "host": max(computing, encoding), "disk": disk}
    # The process holds the weights while they are loaded, and after that where they rest there.
    host = cost.host_process_bytes(card, recipe, loads_weights=budgets.loads_weights)
    host += max(row.resting_bytes for row in costs)
    device = max(computing, cost.preparation_bytes(card, recipe, budgets))
    return {"device": device, "host": max(host, encoding), "disk": disk}


def _encoding_bytes(card: Card, files: list[Recipe], memory_bytes: int | None) -> int:
    """The process while a file is written whose encoder holds the picture; 0 without one.

    Raises:
        RequestError: If a budget that was asked for does not hold it, on a CPU.
    """
    recipe = max(files, key=encoder_bytes)
    if not encoder_bytes(recipe):
        return 0
    needed = cost.process_bytes(card, recipe) + encoder_bytes(recipe)
    if memory_bytes is not None and needed > memory_bytes and recipe.device == "cpu":
        raise RequestError(
            f"{recipe.format} is encoded whole: that takes {format_bytes(needed)} of memory, the "
            f"budget is {format_bytes(memory_bytes)}; use png, jpeg or tiff, or a larger --memory"
        )
    return needed


def _warnings(
    asked: Recipe,
    card: Card,
    all_stages: tuple[Stage, ...],
    budgets: Budgets,
    host_memory_bytes: int | None,
) -> tuple[str, ...]:
    found = [
        card.foreign_prompt_warning(asked.prompt),
        native_warning(asked.width_px, asked.height_px, card),
        *choices_without_effect(asked, card, all_stages),
        *stretched(asked),
    ]
    if host_memory_bytes is not None and budgets.host_bytes is None:
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
