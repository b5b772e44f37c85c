"""The cascade through the engine is the cascade of plain diffusers calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

import hirescli
from hirescli.bands.engine import Engine, banded_tensor
from hirescli.cascade.methods import anchor_colours
from hirescli.cascade.stages import GUIDANCE_RESCALE, Stages
from hirescli.models.load import Model
from hirescli.output.resize import ArrayRows, Resized
from hirescli.planning.cascade import Stage, schedule_steps
from hirescli.planning.passes import Store
from hirescli.planning.plan import Plan
from hirescli.runs.journal import Journal

pytestmark = pytest.mark.slow


def recipe(**choices: object) -> hirescli.Recipe:
    made = {
        "prompt": "a lake", "steps": 3, "upscale_steps": 2, "seed": 5, "dtype": "float32",
        **choices,
    }  # fmt: skip
    return hirescli.Recipe.from_fragments({"size": 128}, made)


def whole(latents: Any) -> Tensor:
    (made,) = Engine(stores=(Store("host", 10**12),)).whole([latents])
    return made


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def texts(model: Model, plan: Plan, stage: Stage) -> dict[str, Tensor]:
    word = model.card.scale_word(max(stage.width_px, stage.height_px))
    scaled = model.text.scaled(plan.recipe.prompt, word)
    return model.text.encode(scaled, plan.recipe.negative_prompt)


@torch.no_grad()
def plain_base(model: Model, plan: Plan, stage: Stage, generator: torch.Generator) -> Tensor:
    pipeline: Any = StableDiffusionPipeline(
        vae=model.autoencoder, text_encoder=None, tokenizer=None, unet=model.unet,
        scheduler=model.scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    with model.attending(stage.attention):
        made: Tensor = pipeline(
            **texts(model, plan, stage),
            latents=noise((1, 16, stage.latent_height, stage.latent_width), generator),
            height=stage.height_px,
            width=stage.width_px,
            num_inference_steps=stage.steps,
            guidance_scale=stage.guidance_scale,
            guidance_rescale=GUIDANCE_RESCALE,
            output_type="latent",
        ).images
    return made


@torch.no_grad()
def plain_upscale(
    model: Model, plan: Plan, stage: Stage, encoded: Tensor, generator: torch.Generator
) -> Tensor:
    """Image to image with guidance, written out."""
    assert stage.strength is not None
    assert stage.guidance_scale > 1
    states = texts(model, plan, stage)
    scheduler = model.scheduler
    scheduler.set_timesteps(schedule_steps(stage.strength, stage.steps))
    timesteps = scheduler.timesteps[-stage.steps :]
    latents = scheduler.add_noise(encoded, noise(tuple(encoded.shape), generator), timesteps[:1])
    for t in timesteps:
        with model.attending(stage.attention):
            free, asked = (
                model.unet(latents, t, states[name], return_dict=False)[0]
                for name in ("negative_prompt_embeds", "prompt_embeds")
            )
        predicted = free + stage.guidance_scale * (asked - free)
        latents = scheduler.step(predicted, t, latents, return_dict=False)[0]
    return anchor_colours(latents, encoded, deviation=model.card.colour_anchor == "moments")


def assert_near(made: Tensor, wanted: Tensor) -> None:
    assert made.shape == wanted.shape
    assert float((made - wanted).abs().max()) <= 1e-3 * float(wanted.std())


@pytest.mark.parametrize("rows", [5, None])
def test_stages_are_plain_calls(model: Model, tmp_path: Path, rows: int | None) -> None:
    plan = hirescli.plan(recipe(rows=rows))
    base, upscale = plan.stage_costs
    plainly = torch.Generator().manual_seed(5)
    banded = torch.Generator().manual_seed(5)

    def stages(name: str) -> Stages:
        folder = tmp_path / name
        folder.mkdir()
        return Stages(model, plan, banded, folder, lambda _: None, Journal(folder, print))

    wanted = plain_base(model, plan, base.stage, plainly)
    assert_near(whole(stages("base").base(base)), wanted)

    with torch.no_grad():
        picture = model.autoencoder.decode(wanted).sample[0].permute(1, 2, 0) * 0.5 + 0.5
        rows_of = Resized(ArrayRows(picture.clamp(0, 1).numpy()), width_px=128, height_px=128)
        pixels = torch.from_numpy(rows_of.rows(0, 128)).permute(2, 0, 1)[None] * 2 - 1
        encoded = model.autoencoder.encode(pixels).latents
    doubled = plain_upscale(model, plan, upscale.stage, encoded, plainly)
    for store in ("host", "disk"):
        state = banded.get_state()
        cost = replace(upscale, latents_store=store)
        kept = stages(store).upscale(cost, banded_tensor(encoded))
        assert_near(whole(kept), doubled)
        banded.set_state(state)


def test_where_values_rest_changes_no_byte(tmp_path: Path) -> None:
    """Latents on disk or in memory, values kept or spilled; the band height is the recipe's."""
    sums, stored = set(), set()
    base_bytes = hirescli.plan(recipe()).card.base_memory_bytes
    for more in (10**10, 14 * 10**6, 10 * 10**6):
        plan = hirescli.plan(recipe(rows=4, size=512), memory=base_bytes + more)
        stored |= {(cost.latents_store, cost.spill_bytes > 0) for cost in plan.stage_costs}
        output = tmp_path / f"{more}.tif"
        made = hirescli.generate(recipe(rows=4, size=512), output, memory=base_bytes + more)
        sums.add(made.sha256)
    assert len(sums) == 1
    assert stored >= {("host", False), ("disk", True)}
    assert np.all([path.suffix == ".tif" for path in tmp_path.iterdir()])
