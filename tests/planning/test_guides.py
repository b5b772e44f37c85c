"""What stands beside a picture on a GPU and its host: weights, guides, noise; tiled decoding."""

from __future__ import annotations

from typing import Any

import pytest

from hirescli.errors import RequestError
from hirescli.models.registry import find_card
from hirescli.planning import cost
from hirescli.planning.cascade import resolve
from hirescli.planning.machine import Device, Machine, default_budget
from hirescli.planning.plan import Plan, make_plan
from hirescli.planning.tiling import Tiling
from hirescli.recipe import Recipe

CARD = find_card("sd15")
HOST_BYTES = 64 * 10**9
CONTROL = {"kind": "canny", "path": "edges.png", "width_px": 512, "height_px": 512}
PICTURE = {"path": "mood.png", "width_px": 512, "height_px": 512}
SMALL, LARGE = 3_400_000_000, 24 * 10**9  # GPUs whose budget rests the weights on the host, or not


def machine(gpu_bytes: int | None, host_bytes: int = HOST_BYTES) -> Machine:
    devices = (Device("a GPU", gpu_bytes),) if gpu_bytes else ()
    return Machine(2, host_bytes, devices, lambda _: 10**12)


def plan(gpu_bytes: int | None, **choices: Any) -> Plan:
    budgets = {key: choices.pop(key, None) for key in ("memory_bytes", "host_memory_bytes")}
    asked = {"prompt": "a", "model": "sd15", "size": 1024, "threads": 2}
    recipe = Recipe.from_fragments(asked, choices)
    return make_plan(recipe, CARD, machine=machine(gpu_bytes), **budgets)


def base_bytes(made: Plan) -> int:
    return made.stage_costs[-1].memory.base_bytes


def resting_bytes(made: Plan) -> int:
    return max(row.resting_bytes for row in made.stage_costs)


def controlnet_bytes() -> int:
    return sum(CARD.trace("controlnet", "bfloat16").parameter_bytes.values())


# ControlNets


def test_controlnets_lie_where_weights_do() -> None:
    plain, guided = (plan(LARGE, controls=each) for each in ([], [CONTROL, CONTROL]))
    assert plain.weights == guided.weights == "device"
    assert base_bytes(guided) - base_bytes(plain) == 2 * controlnet_bytes()
    plain, guided = (plan(SMALL, controls=each) for each in ([], [CONTROL, CONTROL]))
    assert plain.weights == guided.weights == "host, loaded for each pass"
    assert base_bytes(guided) == base_bytes(plain)
    on_host = [each.store_bytes["host"] - resting_bytes(each) for each in (plain, guided)]
    assert on_host[1] - on_host[0] == 2 * controlnet_bytes()


def test_weights_of_controlnets_are_loaded_for_each_pass() -> None:
    made = plan(SMALL, controls=[CONTROL])
    (denoiser,) = (e for e in made.stage_costs[-1].components if e.name == "denoiser")
    weights = CARD.trace("controlnet", "bfloat16").parameter_bytes
    named = {name for each in denoiser.schedule.passes for name in each.weights}
    assert {f"1.{name}" for name in weights} <= named
    moved = sum(weights[name.removeprefix("1.")] for name in named if name.startswith("1."))
    assert denoiser.schedule.moved_bytes > moved == controlnet_bytes()


# LoRAs


def test_loras_take_memory_while_they_are_added_to_the_weights() -> None:
    """One at a time, on the host, whatever the device; the largest one counts."""
    small, large = ({"path": f"{n}.safetensors", "size_bytes": n * 10**6} for n in (40, 150))
    layer_bytes = 12 * 9 * 1280**2
    for gpu_bytes in (None, LARGE, SMALL):
        plain, one, two = (plan(gpu_bytes, loras=own) for own in ([], [small], [small, large]))
        before, after, both = (
            base_bytes(made)
            if gpu_bytes is None
            else made.store_bytes["host"] - resting_bytes(made)
            for made in (plain, one, two)
        )
        assert after - before == 2 * 40 * 10**6 + layer_bytes
        assert both - before == 2 * 150 * 10**6 + layer_bytes
        if gpu_bytes is not None:
            assert base_bytes(two) == base_bytes(plain)


# Image prompts


def test_an_image_encoder_is_let_go_and_its_adapter_stays() -> None:
    encoder, adapter = 2 * 632_076_800, 2 * 22_319_616
    plain, one, two = (plan(LARGE, image_prompts=[PICTURE] * n) for n in (0, 1, 2))
    assert base_bytes(one) - base_bytes(plain) == adapter
    assert base_bytes(two) - base_bytes(plain) == 2 * adapter  # each picture has its own
    for made in (one, two):
        prepared = cost.preparation_bytes(CARD, made.recipe, made.budgets)
        assert prepared == base_bytes(made) + encoder <= made.store_bytes["device"]
    assert one.store_bytes["host"] - resting_bytes(one) == CARD.process_bytes("bfloat16")


def test_an_image_encoder_that_finds_no_room_beside_weights_lets_them_rest() -> None:
    """What a picture needs is there, what its preparation needs is not."""
    plain = plan(LARGE, size=512, memory_bytes=3_400_000_000)
    guided = plan(LARGE, size=512, memory_bytes=3_400_000_000, image_prompts=[PICTURE])
    assert plain.weights == "device"
    assert guided.weights == "host, loaded for each pass"
    on_host = [each.store_bytes["host"] - resting_bytes(each) for each in (plain, guided)]
    text = CARD.text_bytes("bfloat16")  # let go before the image encoder comes
    assert on_host[1] - on_host[0] == 2 * (632_076_800 + 22_319_616) - text


def test_on_a_cpu_everything_is_in_the_process() -> None:
    plain = plan(None)
    guided = plan(None, image_prompts=[PICTURE], controls=[CONTROL])
    more = 2 * (632_076_800 + 22_319_616) - CARD.text_bytes("bfloat16") + controlnet_bytes()
    assert base_bytes(guided) - base_bytes(plain) == more


# The autoencoder


@pytest.mark.parametrize("gpu_bytes", [None, LARGE])
def test_an_autoencoder_counts_in_its_own_dtype(gpu_bytes: int | None) -> None:
    half, full = (plan(gpu_bytes, vae_dtype=each) for each in ("bfloat16", "float32"))
    assert base_bytes(full) - base_bytes(half) == 2 * dict(CARD.parameters)["vae"]


def test_exact_attention_is_what_the_plan_shows() -> None:
    """Above 512 latent pixels a side; 4 numbers for each channel, query and key."""
    pooled, exact = (plan(LARGE, size=8192, vae_attention=each) for each in ("pooled", "exact"))
    for name in ("encoder", "decoder"):
        flops = []
        for made in (pooled, exact):
            (component,) = (e for e in made.stage_costs[-1].components if e.name == name)
            flops.append(component.schedule.plain_flops)
        assert flops[1] - flops[0] == pytest.approx(4 * 512 * 1024**2 * (1024**2 - 512**2))


def test_noise_of_latents_on_a_gpu_is_on_the_host() -> None:
    *_, last = plan(LARGE).stage_costs
    assert last.latents_store == "device"
    assert last.memory.latents_bytes == 128 * 128 * 4 * (1.25 * 4 + 6 * 2)
    kept = max(each.resting_bytes for each in last.components)
    assert last.resting_bytes - kept == 128 * 128 * 4 * 4


# Tiled decoding


def test_tiles_are_those_of_diffusers() -> None:
    made = Tiling(rows=160, width=64, tile=64, factor=8, latent_channels=4, itemsize=2)
    assert made.sides(160) == [64, 64, 64, 16]
    assert made.sides(64) == [64, 16]
    assert made.picture_bytes == 160 * 64 * 64 * 3 * 2
    assert made.tiles_bytes == 208 * 80 * 64 * 3 * 2
    assert made.latents_bytes == 160 * 64 * 4 * (4 + 2 + 2)
    assert made.peak_bytes(10**12) == made.latents_bytes + made.tiles_bytes + 10**12
    joined = made.latents_bytes + max(
        made.tiles_bytes + 2 * made.picture_bytes, made.picture_bytes + 512 * 512 * 48
    )
    assert made.peak_bytes(0) == joined
    whole = Tiling(rows=64, width=48, tile=64, factor=8, latent_channels=4, itemsize=2)
    assert (whole.sides(64), whole.tiles_bytes) == ([64], whole.picture_bytes)


def test_tiled_decoding_holds_the_picture() -> None:
    banded, tiled = (
        plan(LARGE, size=8192, vae_mode=each).stage_costs[-1] for each in ("banded", "tiled")
    )
    assert [each.name for each in tiled.components] == ["encoder", "denoiser", "tiled decoder"]
    assert tiled.components[:2] == banded.components[:2]
    decoder = tiled.components[-1]
    # All tiles, and the picture twice while they are put together, in half precision.
    assert decoder.memory_bytes > (16 / 9 + 2) * 8192**2 * 3 * 2
    assert decoder.flops > 1.6 * CARD_FLOPS_A_PX * 8192**2
    assert "tiled decoder" in plan(LARGE, vae_mode="tiled").to_json()


# Of the decoder, in a tile of 64 latent pixels a side.
CARD_FLOPS_A_PX = sum(
    op.row_flops * op.swept_rows for op in CARD.trace("decoder", "bfloat16").at(64, 64)
) / (512 * 512)


@pytest.mark.parametrize("gpu_bytes", [None, LARGE])
def test_a_budget_below_the_whole_picture_is_refused(gpu_bytes: int | None) -> None:
    choices = {"size": 16384, "vae_mode": "tiled"}
    with pytest.raises(RequestError, match="--vae-mode tiled holds the whole picture") as caught:
        plan(gpu_bytes, **choices, memory_bytes=5 * 10**9)
    amount_gb = float(str(caught.value).split("--memory ")[1].split("GB")[0])
    made = plan(gpu_bytes, **choices, memory_bytes=int(amount_gb * 10**9))
    peak = made.store_bytes["device" if gpu_bytes else "host"]
    assert 8 * 10**9 < peak <= amount_gb * 10**9


def test_tiled_decoding_with_weights_resting_on_the_host_is_refused() -> None:
    assert plan(SMALL).weights == "host, loaded for each pass"
    with pytest.raises(RequestError, match=r"--vae-mode tiled .* weights on the GPU beside it"):
        plan(SMALL, vae_mode="tiled")


# What the host has


@pytest.mark.parametrize(
    "choices",
    [{}, {"controls": [CONTROL]}, {"image_prompts": [PICTURE]}, {"vae_dtype": "float32"}],
    ids=str,
)
def test_the_host_beside_a_gpu_takes_three_quarters_at_most(choices: dict[str, Any]) -> None:
    asked = {"prompt": "a", "model": "sd15", "size": 4096, "threads": 2, "rows": 16}
    recipe = Recipe.from_fragments(asked, choices)
    small = machine(SMALL, 8 * 10**9)
    made = make_plan(recipe, CARD, machine=small)
    assert made.weights == "host, loaded for each pass"
    assert made.peak_memory_bytes <= default_budget(small)
    process = cost.host_process_bytes(CARD, made.recipe, loads_weights=True)
    assert made.budgets.host_bytes == default_budget(small) - process


def test_what_the_host_is_given_is_kept_and_checked(tmp_path: Any) -> None:
    given = 2 * 10**9
    made = plan(SMALL, size=4096, rows=16, host_memory_bytes=given)
    assert made.budgets.host_bytes == given
    assert 0 < resting_bytes(made) <= given
    process = cost.host_process_bytes(CARD, made.recipe, loads_weights=True)
    assert made.peak_memory_bytes == process + resting_bytes(made)
    least = machine(SMALL, made.peak_memory_bytes)
    made.validate(least, tmp_path / "a.tif")
    below = machine(SMALL, made.peak_memory_bytes - 1)
    with pytest.raises(RequestError, match="use a lower --host-memory or a smaller --size"):
        made.validate(below, tmp_path / "a.tif")


def test_a_resolved_recipe_is_what_costs_are_counted_for() -> None:
    recipe = resolve(Recipe(prompt="a", width_px=512, height_px=512, model="sd15"), CARD)
    assert cost.process_bytes(CARD, recipe) == CARD.process_bytes("bfloat16")
