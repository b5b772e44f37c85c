"""What a stage costs: short sums over the schedules of its components."""

from __future__ import annotations

import pytest

from hirescli.models.registry import find_card
from hirescli.planning import cost
from hirescli.planning.cascade import Stage, resolve
from hirescli.planning.cost import Budgets, StageCost
from hirescli.planning.machine import Machine
from hirescli.planning.output_cost import written_bytes
from hirescli.planning.plan import make_plan
from hirescli.planning.schedule import BudgetError
from hirescli.recipe import Recipe

CARD = find_card("builtin")
UPSCALE = Stage(1, "upscale", 2048, 1024, 256, 128, 0.3, 4, 1.0)
BASE = Stage(0, "base", 256, 256, 32, 32, None, 30, 4.0, calls_per_step=2)
PLENTY = 10**15


def recipe(**choices: object) -> Recipe:
    made = {"prompt": "a", "size": 2048, "threads": 2, "dtype": "float32"}
    asked = Recipe.from_fragments(made, choices)
    return resolve(asked, CARD)


def stage_cost(
    stage: Stage, *, rows: int | None = 16, memory: int = PLENTY, **choices: object
) -> StageCost:
    return cost.stage_cost(
        stage, card=CARD, recipe=recipe(**choices), rows=rows, budgets=Budgets(memory, PLENTY)
    )


def test_memory_is_a_short_sum() -> None:
    made = stage_cost(UPSCALE)
    memory = made.memory
    assert memory.base_bytes == CARD.base_memory_bytes
    # Pixels and channels; copies in float32, of the stage before a quarter, and in its own dtype.
    assert memory.latents_bytes == 256 * 128 * 16 * (2.25 * 4 + 6 * 4)
    assert memory.work_bytes == max(each.memory_bytes for each in made.components)
    assert memory.peak_bytes == memory.base_bytes + memory.latents_bytes + memory.work_bytes
    assert (made.latents_store, made.spill_bytes) == ("host", 0)


def test_a_component_takes_its_schedule_and_rows_of_pixels() -> None:
    encoder, denoiser, decoder = stage_cost(UPSCALE).components
    assert denoiser.memory_bytes == denoiser.schedule.peak_bytes["host"]
    # The encoder reads 16 latent rows at a time; the edge holds 48 bytes for each pixel.
    assert encoder.edge_bytes == 16 * 8 * 2048 * 48
    assert decoder.edge_bytes == decoder.schedule.rows * 8 * 2048 * 48
    for each in (encoder, decoder):
        assert each.memory_bytes == each.schedule.peak_bytes["host"] + each.edge_bytes


def test_large_latents_rest_on_disk() -> None:
    latents_bytes = 256 * 128 * 16 * 33
    least = CARD.base_memory_bytes + 8 * latents_bytes  # they may take an eighth
    assert stage_cost(UPSCALE, memory=least).latents_store == "host"
    spilled = stage_cost(UPSCALE, memory=least - 1)
    assert spilled.latents_store == "disk"
    assert spilled.memory.latents_bytes == 0
    kept_bytes = max(each.disk_bytes for each in spilled.components)
    assert spilled.spill_bytes == kept_bytes + latents_bytes


def test_flops_count_calls() -> None:
    base, upscale = stage_cost(BASE), stage_cost(UPSCALE)
    assert [(each.name, each.calls) for each in base.components] == [
        ("denoiser", 30 * 2),  # guided
        ("decoder", 1),
    ]
    assert [(each.name, each.calls) for each in upscale.components] == [
        ("encoder", 1),
        ("denoiser", 4),
        ("decoder", 1),
    ]
    for made in (base, upscale):
        assert made.flops == sum(each.calls * each.schedule.flops for each in made.components)
        assert made.seconds == sum(each.calls * each.schedule.seconds for each in made.components)


def test_with_plenty_nothing_is_computed_twice() -> None:
    for each in stage_cost(UPSCALE).components:
        assert each.schedule.flops == pytest.approx(each.schedule.plain_flops, rel=0.01)


def test_bfloat16_halves_what_the_denoiser_gives_and_about_halves_work() -> None:
    """Encoded latents and noise stay in float32."""
    full, half = stage_cost(UPSCALE), stage_cost(UPSCALE, dtype="bfloat16")
    assert full.memory.latents_bytes == 256 * 128 * 16 * 33
    assert half.memory.latents_bytes == 256 * 128 * 16 * 21
    assert 0.4 < half.memory.work_bytes / full.memory.work_bytes < 0.75


@pytest.mark.parametrize("share", [0.15, 0.3, 1.0, 3.0])
def test_every_stage_stays_within_the_memory_it_is_given(share: float) -> None:
    memory = CARD.base_memory_bytes + int(share * 10**9)
    for stage in (BASE, UPSCALE):
        assert stage_cost(stage, rows=None, memory=memory).memory.peak_bytes <= memory


def test_less_memory_is_never_quicker() -> None:
    seconds = [
        stage_cost(UPSCALE, memory=CARD.base_memory_bytes + more).seconds
        for more in (3 * 10**9, 600 * 10**6, 300 * 10**6, 200 * 10**6)
    ]
    assert seconds == sorted(seconds)


def band_rows(memory: int) -> int:
    return cost.band_rows(
        [UPSCALE], card=CARD, recipe=recipe(), budgets=Budgets(CARD.base_memory_bytes + memory, 0)
    )


def test_band_height_does_not_depend_on_a_roomy_budget() -> None:
    heights = [band_rows(memory) for memory in (10**12, 10**11, 10**10)]
    assert len(set(heights)) == 1
    with pytest.raises(BudgetError):
        band_rows(10**6)


def test_disk_is_a_short_sum() -> None:
    """The last spool, and beside it what a stage works with or the files."""
    plan = make_plan(recipe(), CARD, machine=Machine(cores=2, memory_bytes=64 * 10**9))
    *_, last = plan.stage_costs
    journal = cost.journal_bytes(last, CARD, plan.recipe)
    spool, before = 3 * 2048**2, 6 * 1024**2  # 8 bits, and 16 between stages
    for choices in ({"format": "tiff"}, {"format": "jpeg", "quality": 80}, {"format": "png"}):
        chosen = plan.recipe.model_copy(update=choices)
        working = max(before + journal, written_bytes(chosen))
        assert cost.disk_bytes(plan.stage_costs, CARD, chosen) == spool + working


def test_a_journal_grows_to_records_and_two_snapshots() -> None:
    plan = make_plan(recipe(), CARD, machine=Machine(cores=2, memory_bytes=64 * 10**9))
    *_, last = plan.stage_costs
    latents = 256 * 256 * 16
    calls = sum(each.calls for each in last.components if each.name == "denoiser")
    records = latents * 4 * (calls + 2)  # what the denoiser gave; the encoder, and the stage
    snapshots = cost.journal_bytes(last, CARD, plan.recipe) - records
    assert calls > 0
    assert 0 < snapshots <= 2 * max(each.memory_bytes for each in last.components)
