"""Budgets of a run, and what its stages cost under them. No torch."""

from __future__ import annotations

from hirescli.errors import RequestError
from hirescli.planning import cost
from hirescli.planning.card import Card
from hirescli.planning.cascade import Stage
from hirescli.planning.cost import Budgets, StageCost
from hirescli.planning.machine import BUDGET_FRACTION, Machine, default_budget
from hirescli.planning.schedule import BudgetError
from hirescli.recipe import Recipe
from hirescli.units import format_bytes

_WORK_BYTES = 170 * 10**6  # of default memory beside the model, on a CPU
_ANY_DISK = 1 << 62

Fitted = tuple[Budgets, int, tuple[StageCost, ...]]  # with the band height in latent rows


def fitted(
    all_stages: tuple[Stage, ...],
    card: Card,
    recipe: Recipe,
    machine: Machine,
    *,
    memory_bytes: int | None,
    host_memory_bytes: int | None,
) -> Fitted:
    """Budgets that hold every stage, the band height, and what the stages cost.

    On a GPU weights lie on the device if that leaves room for a band, else on the host. Tiled
    decoding is diffusers' own and loads no weights for itself, so they must lie on the device.

    Args:
        all_stages: Of the recipe.
        card: Of its model.
        recipe: Resolved, with threads and device.
        machine: Where it shall run.
        memory_bytes: Budget where bands are computed; None: see `default_memory`.
        host_memory_bytes: Budget of values on the host beside a GPU; None: three quarters of
            what is installed, less what the process holds there itself.

    Raises:
        RequestError: If the budget cannot hold one band.
    """
    memory = memory_bytes or default_memory(card, recipe, machine)
    for budgets in _attempts(card, recipe, machine, memory, host_memory_bytes):
        try:
            return budgets, *_costs(all_stages, card, recipe, budgets)
        except BudgetError as error:
            least, refusal = error.least_bytes, error
    needed = cost.with_latents_bytes(least, card=card, recipe=recipe, budgets=budgets)
    if memory_bytes is not None or recipe.device == "cuda" or needed > default_budget(machine):
        raise _over_budget(needed, budgets, recipe) from refusal
    budgets = Budgets(needed, _ANY_DISK)
    return budgets, *_costs(all_stages, card, recipe, budgets)


def _attempts(
    card: Card, recipe: Recipe, machine: Machine, memory_bytes: int, host_memory_bytes: int | None
) -> list[Budgets]:
    """Budgets to try, the quickest first."""
    if recipe.device != "cuda":
        return [Budgets(memory_bytes, _ANY_DISK)]
    made = []
    for loads in (False, True) if recipe.vae_mode == "banded" else (False,):
        process = cost.host_process_bytes(card, recipe, loads_weights=loads)
        host = host_memory_bytes or max(0, default_budget(machine) - process)
        made.append(Budgets(memory_bytes, _ANY_DISK, host, loads))
    return made


def default_memory(card: Card, recipe: Recipe, machine: Machine) -> int:
    """Bytes a run may use when nothing else is said.

    On a CPU that is the model and a fixed room to work in: pictures of every size are so made
    in about the same memory, and a plan takes what one band takes where that is more. At most
    the machine's default budget. Of a GPU it is three quarters.
    """
    if recipe.device == "cuda":
        return int(machine.devices[0].memory_bytes * BUDGET_FRACTION)
    return min(default_budget(machine), cost.process_bytes(card, recipe) + _WORK_BYTES)


def _costs(
    all_stages: tuple[Stage, ...], card: Card, recipe: Recipe, budgets: Budgets
) -> tuple[int, tuple[StageCost, ...]]:
    """The band height, and all stages with what they take."""
    prepared_bytes = cost.preparation_bytes(card, recipe, budgets)
    try:
        rows = recipe.rows or cost.band_rows(all_stages, card=card, recipe=recipe, budgets=budgets)
        costs = [
            cost.stage_cost(stage, card=card, recipe=recipe, rows=rows, budgets=budgets)
            for stage in reversed(all_stages)  # refused are budgets for the largest, for all
        ]
    except BudgetError as error:
        raise BudgetError(str(error), max(error.least_bytes, prepared_bytes)) from error
    if prepared_bytes > budgets.memory_bytes:
        raise BudgetError("an image encoder finds no room", prepared_bytes)
    return rows, tuple(reversed(costs))


def _over_budget(needed_bytes: int, budgets: Budgets, recipe: Recipe) -> RequestError:
    lower = " or fewer --rows" if recipe.rows is not None and recipe.rows > 1 else ""
    of = "memory" if budgets.host_bytes is None else "GPU memory"
    if recipe.vae_mode == "tiled":
        beside = "" if budgets.host_bytes is None else ", with the weights on the GPU beside it"
        return RequestError(
            f"--vae-mode tiled holds the whole picture{beside}: needs at least "
            f"{format_bytes(needed_bytes)} of {of}, the budget is "
            f"{format_bytes(budgets.memory_bytes)}; leave --vae-mode out, since bands are exact "
            f"and take less, or use --memory {_rounded_up_gb(needed_bytes)} (memory=...)"
        )
    return RequestError(
        f"needs at least {format_bytes(needed_bytes)} of {of} for one band, the budget is "
        f"{format_bytes(budgets.memory_bytes)}; use --memory {_rounded_up_gb(needed_bytes)} "
        f"(memory=...){lower} or a smaller --size"
    )


def _rounded_up_gb(amount_bytes: int) -> str:
    return f"{-(-amount_bytes // 10**8) / 10:g}GB"
