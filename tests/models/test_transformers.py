"""FLUX and Stable Diffusion 3.5 by their real configs: weights, traces, plans of 8192 px."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hirescli.cascade.stages import enlarging
from hirescli.errors import RequestError
from hirescli.models.components import DENOISERS
from hirescli.models.families import CONFIGS
from hirescli.models.plugin_sources import adapter_revision
from hirescli.models.registry import find, find_card
from hirescli.models.traces import record_configs
from hirescli.planning.card import Attention
from hirescli.planning.cascade import choices_without_effect, stages
from hirescli.planning.choices import check_choices
from hirescli.planning.passes import Store
from hirescli.planning.schedule import make_schedule
from hirescli.recipe import Recipe

GB = 10**9
TOKENS = 512  # rows and columns of FLUX's tokens at 8192 px


@pytest.mark.parametrize(
    ("name", "billions"),
    [("flux-dev", 11.9), ("flux-schnell", 11.9), ("sd35-medium", 2.2), ("sd35-large", 8.1)],
)
def test_parameters_are_those_of_the_modules(name: str, billions: float) -> None:
    config: dict[str, Any] = json.loads((CONFIGS / name / "transformer/config.json").read_text())
    with torch.device("meta"):
        module = DENOISERS[config["_class_name"]].from_config(config)
    count = sum(p.numel() for p in module.parameters())
    tables = sum(b.numel() for b in module.buffers())  # of positions
    assert count / 1e9 == pytest.approx(billions, rel=0.02)
    assert dict(find_card(name).parameters)["transformer"] == count + tables


@pytest.mark.parametrize(
    ("name", "attention"),
    [("flux-dev", "linear"), ("flux-schnell", "full"), ("sd35-medium", "full")],
)
def test_shipped_traces_are_those_of_the_configs(name: str, attention: Attention) -> None:
    card = find_card(name)
    fresh = record_configs(card, CONFIGS / name, None, "denoiser", "bfloat16", attention)
    assert card.trace("denoiser", "bfloat16", attention) == fresh, "hirescli.models.traces"


@pytest.mark.parametrize(("budget", "loads"), [(28, False), (12, True)])
def test_flux_at_8192_fits(budget: int, loads: bool) -> None:
    """262,144 tokens by CLEAR: with its 23.8 GB on the device, or with them on the host."""
    card = find_card("flux-dev")
    resting = 0 if loads else card.resident_bytes("bfloat16")
    assert resting in (0, pytest.approx(24e9, rel=0.01))
    stores = (Store("device", budget * GB - resting), Store("host", 64 * GB, 2e10))
    trace = card.trace("denoiser", "bfloat16", "linear")
    made = make_schedule(
        trace, TOKENS, TOKENS, stores=stores, loads_weights=loads, flops_per_second=5e13
    )
    assert made.peak_bytes["device"] + resting <= budget * GB
    assert made.peak_bytes["host"] == 0  # nothing needs to leave the device
    assert made.flops == pytest.approx(made.plain_flops)
    assert len(made.passes) == 57  # one for each block


def test_clear_grows_with_the_pixels_and_full_attention_with_their_square() -> None:
    card = find_card("flux-dev")

    def flops(attention: Attention, side: int) -> float:
        ops = card.trace("denoiser", "bfloat16", attention).at(side, side)
        return sum(op.swept_rows * op.row_flops for op in ops)

    assert flops("linear", 512) == pytest.approx(16 * flops("linear", 128), rel=0.01)
    assert flops("full", 512) > 50 * flops("full", 128)


CONTROLS = {"controls": [{"kind": "canny", "path": "edges.png"}]}
PICTURES = {"image_prompts": [{"path": "edges.png"}]}


@pytest.mark.parametrize(
    ("name", "flag", "choice"),
    [
        ("sd35-large", "--image-prompt", PICTURES),
        ("sd35-large", "--control", CONTROLS),
    ],
)
def test_what_does_not_plug_in_is_refused(name: str, flag: str, choice: dict[str, Any]) -> None:
    recipe = Recipe.from_fragments({"prompt": "a lake", "size": 1024, "model": name}, choice)
    with pytest.raises(RequestError, match=f"{flag} does not work with model `{name}` yet"):
        check_choices(recipe, find_card(name))


def test_larger_pictures_than_the_table_of_positions_are_said() -> None:
    card = find_card("sd35-large")
    for size, said in ((3072, 0), (4096, 1)):
        recipe = Recipe.from_fragments({"prompt": "a lake", "size": size, "model": card.name})
        found = list(choices_without_effect(recipe, card, stages(recipe, card)))
        assert sum("ends at 3072 px" in each for each in found) == said


def test_an_upscaling_stage_has_its_own_rotary_base_and_schedule() -> None:
    card = find_card("flux-dev")
    model: Any = SimpleNamespace(unet=SimpleNamespace(pos_embed=SimpleNamespace(theta=10000)))
    model.card = card
    recipe = Recipe.from_fragments({"prompt": "a lake", "size": 2048, "model": card.name})
    controlnet = SimpleNamespace(pos_embed=SimpleNamespace(theta=10000))
    base, upscale = stages(recipe, card)
    for stage, theta in ((base, 10000), (upscale, 100000)):
        with enlarging(model, stage, [controlnet]):
            assert model.unet.pos_embed.theta == controlnet.pos_embed.theta == theta
        assert model.unet.pos_embed.theta == controlnet.pos_embed.theta == 10000
    assert not card.upscale_dynamic_shifting
    assert (base.calls_per_step, upscale.calls_per_step) == (1, 1)
    assert (upscale.strength, upscale.steps, upscale.guidance_scale) == (0.7, 14, 7.5)


def test_adapters_of_clear_are_known_by_name() -> None:
    card = find("flux-schnell", adapter="clear-8", weights=False).card
    assert card.adapter == "clear"
    with pytest.raises(RequestError, match=r"is no file; give one of .*clear-16"):
        find("flux-dev", adapter="clear-17", weights=False)


@pytest.mark.parametrize("name", ["sd35-medium", "sdxl"])
def test_published_weights_of_clear_are_for_flux_only(name: str) -> None:
    """Before anything is looked for or loaded, and whatever attention is asked for."""
    card = find_card(name)
    for look in (
        lambda: find(name, adapter="clear-16", weights=False),
        lambda: adapter_revision("clear-16", None, card),
    ):
        with pytest.raises(RequestError, match=f"made for FLUX.1 and does not fit model `{name}`"):
            look()
