"""The stages of one image: a base near the model's native size, then growth by at most 2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from hirescli.errors import RequestError
from hirescli.planning.card import Card
from hirescli.recipe import Recipe
from hirescli.units import format_pixels

MAX_SIDE_PX = 2**20
_MOST_SCHEDULE_STEPS = 1000  # timesteps that models of this family were trained on
MAX_ASPECT = 4  # a base of 4:1 has a long side of twice the native one: models repeat beyond
_MAX_RATIO = 2
# The base's area against native_px squared: room to hit the target's aspect on the multiples.
_LEAST_AREA, _MOST_AREA = 0.75, 1.1


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


def sizes(width_px: int, height_px: int, card: Card) -> tuple[tuple[int, int], ...]:
    """Sizes of the stages: equal ratios of at most 2, every side a multiple.

    Raises:
        RequestError: If the size does not work, naming the nearest that do.
    """
    check_size(width_px, height_px, card)
    base = base_size(width_px, height_px, card)
    ratio = max(width_px / base[0], height_px / base[1])
    upscales = math.ceil(math.log2(ratio)) if ratio > 1 else 0
    # Rounding to the multiple can push a ratio just above 2; one stage more mends that.
    for count in (upscales, upscales + 1, upscales + 2):
        grown = _grow(base, (width_px, height_px), count, card.multiple_px)
        if all(_grows_right(small, large) for small, large in pairwise(grown)):
            return grown
    raise AssertionError(f"no stages for {width_px}x{height_px} px")


def base_size(width_px: int, height_px: int, card: Card) -> tuple[int, int]:
    """Size of the base: the target's aspect at about the native area, or a small target itself."""
    native_area = card.native_px**2
    if width_px * height_px <= native_area:
        return width_px, height_px
    aspect = max(width_px, height_px) / min(width_px, height_px)
    multiple_px = card.multiple_px
    fits = []
    for short_px in range(card.min_px, card.native_px + 1, multiple_px):
        long_px = min(_nearest(short_px * aspect, multiple_px), 2 * card.native_px)
        area = long_px * short_px / native_area
        if _LEAST_AREA <= area <= _MOST_AREA:
            distortion = abs(math.log(long_px / short_px / aspect))
            fits.append((round(distortion, 9), abs(math.log(area)), long_px, short_px))
    assert fits, f"no base for {width_px}x{height_px} px: the card's multiple is too coarse"
    _, _, long_px, short_px = min(fits)
    # Rounding must not leave the base larger than the target.
    long_px, short_px = min(long_px, max(width_px, height_px)), min(short_px, width_px, height_px)
    return (long_px, short_px) if width_px >= height_px else (short_px, long_px)


def check_size(width_px: int, height_px: int, card: Card) -> None:
    """Refuse a size that the model cannot make.

    Raises:
        RequestError: Naming every reason and the nearest sizes that work.
    """
    reasons = [
        reason
        for side, side_px in (("width", width_px), ("height", height_px))
        for reason in _side_faults(side, side_px, card)
    ]
    if max(width_px, height_px) > MAX_ASPECT * min(width_px, height_px):
        reasons.append(f"the long side is more than {MAX_ASPECT} times the short one")
    if reasons:
        works = " or ".join(f"{w}x{h}" for w, h in nearest_sizes(width_px, height_px, card))
        raise RequestError(
            f"size {width_px}x{height_px} does not work with model `{card.name}`: "
            f"{'; '.join(reasons)}. Nearest sizes that work: {works}"
        )


def nearest_sizes(width_px: int, height_px: int, card: Card) -> list[tuple[int, int]]:
    """The one or two sizes nearest to the asked one that work, smaller first."""
    multiple_px = card.multiple_px
    found = set()
    for rounded in (math.floor, math.ceil):
        width, height = (
            _within(rounded(side_px / multiple_px) * multiple_px, card)
            for side_px in (width_px, height_px)
        )
        shortest = math.ceil(max(width, height) / MAX_ASPECT / multiple_px) * multiple_px
        found.add((max(width, shortest), max(height, shortest)))
    return sorted(found)


def native_warning(width_px: int, height_px: int, card: Card) -> str | None:
    """A warning for a picture much smaller than the model's native size, else None."""
    if 4 * width_px * height_px > card.native_px**2:
        return None
    return (
        f"{format_pixels(width_px, height_px)} is far below the {card.native_px} px that model "
        f"`{card.name}` was trained at; make it at {card.native_px} or more and shrink it"
    )


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


def _grow(
    base: tuple[int, int], target: tuple[int, int], upscales: int, multiple_px: int
) -> tuple[tuple[int, int], ...]:
    """Geometric means between base and target, rounded to the multiple; the ends are exact."""
    if upscales == 0:
        return (target,)
    between = [
        (
            _nearest(base[0] * (target[0] / base[0]) ** (k / upscales), multiple_px),
            _nearest(base[1] * (target[1] / base[1]) ** (k / upscales), multiple_px),
        )
        for k in range(1, upscales)
    ]
    return (base, *between, target)


def _grows_right(small: tuple[int, int], large: tuple[int, int]) -> bool:
    sides = tuple(zip(small, large, strict=True))
    return all(s <= b <= _MAX_RATIO * s for s, b in sides) and small != large


def _one_per_upscale(strengths: tuple[float, ...], upscales: int) -> tuple[float, ...]:
    """As many strengths as upscaling stages (at least one): the last repeats."""
    wanted = max(upscales, 1)
    return (strengths + (strengths[-1],) * wanted)[:wanted]


def _side_faults(side: str, side_px: int, card: Card) -> list[str]:
    if side_px < card.min_px:
        return [f"{side} {side_px} px is below the least of {card.min_px} px"]
    if side_px > MAX_SIDE_PX:
        return [f"{side} {side_px} px is above the limit of {MAX_SIDE_PX} px"]
    if side_px % card.multiple_px:
        return [f"{side} {side_px} px is not a multiple of {card.multiple_px} px"]
    return []


def _nearest(side_px: float, multiple_px: int) -> int:
    return max(multiple_px, math.floor(side_px / multiple_px + 0.5) * multiple_px)


def _within(side_px: int, card: Card) -> int:
    highest_px = MAX_SIDE_PX // card.multiple_px * card.multiple_px
    return min(max(side_px, card.min_px), highest_px)
