"""The stages of one image: a base near the model's native size, then growth by at most 2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hirescli.errors import RequestError
from hirescli.planning.card import Card
from hirescli.planning.sizes import sizes
from hirescli.recipe import Recipe

_MOST_SCHEDULE_STEPS = 1000  # timesteps that models of this family were trained on


@dataclass(frozen=True)
class Stage:
    """One resolution of the cascade.

    Attributes:
        index: From 0.
        kind: "base" starts from noise, "upscale" from the stage before.
        width_px, height_px: Size of the picture at this stage.
        latent_width, latent_height: The same in latent pixels.
        strength: How far an upscaling stage renoises, in (0, 1]; None at the base.
        steps: Denoising steps that are run.
        guidance_scale: 1 means no guidance: one denoiser call per step, not two.
    """

    index: int
    kind: Literal["base", "upscale"]
    width_px: int
    height_px: int
    latent_width: int
    latent_height: int
    strength: float | None
    steps: int
    guidance_scale: float


def resolve(recipe: Recipe, card: Card) -> Recipe:
    """The recipe with every open choice filled from the card (`rows` is the plan's matter).

    Raises:
        RequestError: If the size, revision, scheduler or VAE mode does not work with the model.
    """
    upscales = len(sizes(recipe.width_px, recipe.height_px, card)) - 1
    scheduler = recipe.scheduler or card.scheduler
    if scheduler not in card.schedulers:
        raise RequestError(
            f'scheduler "{scheduler}" does not work with model `{card.name}`; '
            f"use one of {', '.join(card.schedulers)}"
        )
    if recipe.revision not in (None, card.revision):
        raise RequestError(
            f'revision "{recipe.revision}" of model `{card.name}` is not here, '
            f'"{card.revision}" is; leave the revision out to use that'
        )
    if recipe.vae_mode == "tiled" and not card.vae_tiling:
        raise RequestError(
            f"the autoencoder of model `{card.name}` has no tiling; leave --vae-mode out: banded "
            "decoding is exact and takes as little memory"
        )
    strengths = _one_per_upscale(recipe.strengths or card.strengths, upscales)
    filled = {
        "revision": card.revision,
        "scheduler": scheduler,
        "strengths": strengths,
        "steps": recipe.steps or card.steps,
        "guidance_scale": recipe.guidance_scale or card.guidance_scale,
        "upscale_steps": recipe.upscale_steps or card.upscale_steps,
        "upscale_guidance_scale": recipe.upscale_guidance_scale or card.upscale_guidance_scale,
        "dtype": recipe.dtype or card.dtype,
    }
    return recipe.model_copy(update=filled)


def stages(recipe: Recipe, card: Card) -> tuple[Stage, ...]:
    """The stages from base to target; the last has exactly the recipe's size.

    Raises:
        RequestError: As `resolve`, or if a strength is too low for its steps.
    """
    recipe = resolve(recipe, card)
    all_sizes = sizes(recipe.width_px, recipe.height_px, card)
    made = tuple(_stage(i, size, recipe, card) for i, size in enumerate(all_sizes))
    for stage in made[1:]:
        _check_schedule(stage)
    return made


def schedule_steps(strength: float, steps: int) -> int:
    """The length of a schedule of which image-to-image at `strength` runs exactly `steps`.

    Diffusers runs int(length * strength) of them.
    """
    length = math.ceil(steps / strength)
    while int(length * strength) < steps:  # a product just below the integer
        length += 1
    return length


def choices_without_effect(
    asked: Recipe, card: Card, all_stages: tuple[Stage, ...]
) -> Iterator[str]:
    """Warnings for choices that change nothing at this size.

    Args:
        asked: The recipe before `resolve`.
        card: Of its model; what it says itself is no choice.
        all_stages: Of the recipe.
    """
    doublings = len(all_stages) - 1
    if asked.vae_attention == "exact" and not card.vae_attention:
        yield f"--vae-attention has no effect: model `{card.name}` decodes without attention"
    if asked.negative_prompt and all(stage.guidance_scale == 1 for stage in all_stages):
        yield "the negative prompt has no effect without guidance; use a --guidance-scale above 1"
    if doublings == 0:
        usual = resolve(
            Recipe(prompt="-", width_px=asked.width_px, height_px=asked.height_px), card
        )
        for key in ("strengths", "upscale_steps", "upscale_guidance_scale"):
            if getattr(asked, key) not in (None, getattr(usual, key)):
                flag = key.replace("_", "-")
                yield f"--{flag} has no effect: a picture of this size needs no doubling"
    elif asked.strengths is not None and len(asked.strengths) > doublings:
        yield (
            f"{len(asked.strengths)} strengths for {doublings} doublings: "
            f"only the first {doublings} count"
        )


def _stage(index: int, size: tuple[int, int], recipe: Recipe, card: Card) -> Stage:
    width_px, height_px = size
    assert recipe.strengths is not None
    assert recipe.steps is not None
    assert recipe.upscale_steps is not None
    assert recipe.guidance_scale is not None
    assert recipe.upscale_guidance_scale is not None
    base = index == 0
    return Stage(
        index=index,
        kind="base" if base else "upscale",
        width_px=width_px,
        height_px=height_px,
        latent_width=width_px // card.vae_factor,
        latent_height=height_px // card.vae_factor,
        strength=None if base else recipe.strengths[index - 1],
        steps=recipe.steps if base else recipe.upscale_steps,
        guidance_scale=recipe.guidance_scale if base else recipe.upscale_guidance_scale,
    )


def _check_schedule(stage: Stage) -> None:
    assert stage.strength is not None
    length = schedule_steps(stage.strength, stage.steps)
    if length > _MOST_SCHEDULE_STEPS:
        raise RequestError(
            f"{stage.steps} steps at strength {stage.strength:g} need a schedule of {length} "
            f"steps, at most {_MOST_SCHEDULE_STEPS} work; use fewer --upscale-steps or higher "
            "--strengths"
        )


def _one_per_upscale(strengths: tuple[float, ...], upscales: int) -> tuple[float, ...]:
    """As many strengths as upscaling stages (at least one): the last repeats."""
    wanted = max(upscales, 1)
    return (strengths + (strengths[-1],) * wanted)[:wanted]
