"""The stages of one image: a base near the model's native size, then growth by at most 2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from hirescli.errors import RequestError
from hirescli.planning.card import Card
from hirescli.planning.choices import check_choices
from hirescli.planning.clear_sizes import check_pooled, check_window, pooled_card
from hirescli.planning.sizes import Size, doublings, enlarged_sizes, sizes
from hirescli.recipe import Recipe

T = TypeVar("T")
_MOST_SCHEDULE_STEPS = 1000  # timesteps that models of this family were trained on
_INIT_STRENGTH = 0.6
# Up to here softmax attention is as quick as linear attention, or quicker: users of the published
# adapters report it for 512 px, and its share of a step is small up to 1024 px.
_FULL_ATTENTION_PX = 1024**2
_UPSCALING = dict.fromkeys(("strengths", "upscale_steps", "upscale_guidance_scale"))


@dataclass(frozen=True)
class Stage:
    """One resolution of the cascade.

    Attributes:
        index: From 0.
        kind: "base" begins the cascade, "upscale" starts from the stage before, or from the
            picture that is enlarged.
        width_px, height_px: Size of the picture at this stage.
        latent_width, latent_height: The same in latent pixels.
        strength: How far a picture is renoised, in (0, 1]; None: it begins from pure noise.
        steps: Denoising steps that are run.
        guidance_scale: 1 means no guidance.
        attention: Of the denoiser's self-attention: "linear" by an adapter, "full" its own.
        ratio: Side length against the model's native one, at least 1, for dilated branches; a
            half is rounded up.
        calls_per_step: Of the denoiser: guidance by a second call, without the prompt, makes two.
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
    attention: Literal["linear", "full"] = "linear"
    ratio: int = 1
    calls_per_step: int = 1


def resolve(recipe: Recipe, card: Card) -> Recipe:
    """The recipe with every open choice filled from the card (`rows` is the plan's matter).

    Strengths and steps that the recipe names are those of its upscaling stages in order. The
    card's are those of the doublings above its native size: a picture that is large already
    gets what a cascade from a prompt would do at that size.

    Raises:
        RequestError: If a choice does not work with the model.
    """
    scales = _scales(recipe, card)
    upscales = len(scales)
    check_choices(recipe, card)
    init_strength = recipe.init_strength or (_INIT_STRENGTH if recipe.init_image else None)
    filled = {
        "revision": card.revision,
        "scheduler": recipe.scheduler or card.scheduler,
        "strengths": _one_per_upscale(recipe.strengths, upscales)
        or _by_scale(card.strengths, scales),
        "upscale_steps": _one_per_upscale(recipe.upscale_steps, upscales)
        or _by_scale(card.upscale_steps, scales),
        "init_strength": init_strength,
        "steps": recipe.steps or card.steps,
        "guidance_scale": recipe.guidance_scale or card.guidance_scale,
        "upscale_guidance_scale": _one_per_upscale(recipe.upscale_guidance_scale, upscales)
        or _by_scale(card.upscale_guidance_scale, scales),
        "dtype": recipe.dtype or card.dtype,
        "vae_dtype": recipe.vae_dtype or card.vae_dtype or recipe.dtype or card.dtype,
    }
    return recipe.model_copy(update=filled)


def stages(recipe: Recipe, card: Card) -> tuple[Stage, ...]:
    """The stages from base to target; the last has exactly the recipe's size.

    Raises:
        RequestError: As `resolve`, or if a strength is too low for its steps, or CLEAR's window
            too large for a stage.
    """
    recipe = resolve(recipe, card)
    made: list[Stage] = []
    for kind, size in _stage_sizes(recipe, card):
        upscales = sum(stage.kind == "upscale" for stage in made)
        made.append(_stage(len(made), kind, upscales, size, recipe, card))
    for stage in made:
        _check_schedule(stage, card)
        if stage.attention == "linear":
            check_window((stage.width_px, stage.height_px), card)
    return tuple(made)


def _stage_sizes(recipe: Recipe, card: Card) -> list[tuple[Literal["base", "upscale"], Size]]:
    size = (recipe.width_px, recipe.height_px)
    # No stage is larger than the last: where that is full, all are.
    if card.clear_down_factor > 1 and _attention(size, recipe, card) == "linear":
        check_pooled(size, card)
        card = pooled_card(card)
    if recipe.source is None:
        base, *larger = sizes(*size, card)
        return [("base", base), *(("upscale", each) for each in larger)]
    assert recipe.source.width_px is not None, "the picture was not looked at"
    assert recipe.source.height_px is not None, "the picture was not looked at"
    source = (recipe.source.width_px, recipe.source.height_px)
    return [("upscale", each) for each in enlarged_sizes(source, size, card)]


def schedule_steps(strength: float, steps: int, *, flows: bool = False) -> int:
    """The length of a schedule of which image-to-image at `strength` runs exactly `steps`.

    Diffusers runs int(length * strength) of them; of models that flow from noise it leaves out
    int(length - length * strength).

    Args:
        strength: In (0, 1].
        steps: That shall be run.
        flows: Whether the model is of the latter kind.
    """
    length = math.ceil(steps / strength) - flows
    while _run_steps(length, strength, flows) < steps:  # a product just below the integer
        length += 1
    return length


def _run_steps(length: int, strength: float, flows: bool) -> int:
    if flows:
        return length - int(max(length - min(length * strength, length), 0))
    return int(length * strength)


def choices_without_effect(
    asked: Recipe, card: Card, all_stages: tuple[Stage, ...]
) -> Iterator[str]:
    """Warnings for choices that change nothing at this size.

    Args:
        asked: The recipe before `resolve`.
        card: Of its model; what it says itself is no choice.
        all_stages: Of the recipe.
    """
    upscales = sum(stage.kind == "upscale" for stage in all_stages)
    if asked.vae_attention == "exact" and not card.vae_attention:
        yield f"--vae-attention has no effect: model `{card.name}` decodes without attention"
    if asked.negative_prompt and all(stage.calls_per_step == 1 for stage in all_stages):
        if card.guidance == "free":
            remedy = "without guidance; use a --guidance-scale above 1"
        else:
            remedy = f"with model `{card.name}`, which is guided without a second call"
        yield f"the negative prompt has no effect {remedy}"
    if card.guidance == "none":
        needless = f"has no effect: model `{card.name}` was distilled to need no guidance"
        if asked.guidance_scale not in (None, card.guidance_scale):
            yield f"--guidance-scale {needless}"
        if not set(asked.upscale_guidance_scale or ()) <= set(card.upscale_guidance_scale):
            yield f"--upscale-guidance-scale {needless}"
    if card.positions_px is not None and max(asked.width_px, asked.height_px) > card.positions_px:
        yield (
            f"the table of positions of model `{card.name}` ends at {card.positions_px} px: it is "
            "stretched over larger pictures, which the model was not trained for"
        )
    if asked.adapter is not None and all(stage.attention == "full" for stage in all_stages):
        if asked.attention == "full":
            yield "--adapter has no effect with --attention full; leave one of the two out"
        else:
            yield (
                "--adapter has no effect: at these sizes the model's own attention is quicker; "
                "use --attention linear to have it all the same"
            )
    if asked.init_strength is not None and asked.init_image is None:
        yield "--init-strength has no effect without --init-image"
    if asked.source is not None:
        for key in ("steps", "guidance_scale"):
            if getattr(asked, key) not in (None, getattr(card, key)):
                flag = key.replace("_", "-")
                yield f"--{flag} has no effect: an enlarged picture has no base stage"
    if upscales == 0:
        usual = resolve(asked.model_copy(update=_UPSCALING), card)
        for key in _UPSCALING:
            if getattr(asked, key) not in (None, getattr(usual, key)):
                flag = key.replace("_", "-")
                yield f"--{flag} has no effect: a picture of this size needs no doubling"
    for what, values in (
        ("strengths", asked.strengths),
        ("--upscale-steps", asked.upscale_steps),
        ("--upscale-guidance-scale", asked.upscale_guidance_scale),
    ):
        if values is not None and len(values) > upscales > 0:
            yield f"{len(values)} {what} for {upscales} doublings: only the first {upscales} count"


def _stage(
    index: int, kind: Literal["base", "upscale"], upscales: int, size: Size, recipe: Recipe,
    card: Card,
) -> Stage:  # fmt: skip
    width_px, height_px = size
    assert recipe.strengths is not None
    assert recipe.steps is not None
    assert recipe.upscale_steps is not None
    assert recipe.guidance_scale is not None
    assert recipe.upscale_guidance_scale is not None
    base = kind == "base"
    scales = recipe.upscale_guidance_scale
    guidance_scale = recipe.guidance_scale if base else scales[upscales]
    return Stage(
        index=index,
        kind=kind,
        width_px=width_px,
        height_px=height_px,
        latent_width=width_px // card.vae_factor,
        latent_height=height_px // card.vae_factor,
        strength=recipe.init_strength if base else recipe.strengths[upscales],
        steps=recipe.steps if base else recipe.upscale_steps[upscales],
        guidance_scale=guidance_scale,
        attention=_attention(size, recipe, card),
        ratio=_ratio(size, card),
        calls_per_step=card.calls_per_step(guidance_scale),
    )


def _ratio(size: Size, card: Card) -> int:
    exact = math.sqrt(size[0] * size[1]) / card.native_px
    return max(1, math.floor(exact + 0.5))  # round() would go to the even neighbour


def _attention(size: Size, recipe: Recipe, card: Card) -> Literal["linear", "full"]:
    if recipe.attention != "auto":
        return recipe.attention
    if card.closed:  # its adapter is always there, and as quick in small pictures
        return "linear"
    has_adapter = card.adapter is not None or recipe.adapter is not None
    return "linear" if has_adapter and size[0] * size[1] > _FULL_ATTENTION_PX else "full"


def _check_schedule(stage: Stage, card: Card) -> None:
    if stage.strength is None:
        return
    length = schedule_steps(stage.strength, stage.steps, flows=card.is_transformer)
    if length > _MOST_SCHEDULE_STEPS:
        which = "--steps or a higher --init-strength"
        if stage.kind == "upscale":
            which = "--upscale-steps or higher --strengths"
        raise RequestError(
            f"{stage.steps} steps at strength {stage.strength:g} need a schedule of {length} "
            f"steps, at most {_MOST_SCHEDULE_STEPS} work; use fewer {which}"
        )


def _scales(recipe: Recipe, card: Card) -> list[int]:
    """For every upscaling stage the number of the doubling above the native size, from 1."""
    targets = [size for kind, size in _stage_sizes(recipe, card) if kind == "upscale"]
    if recipe.source is None:  # from the base on, each stage is a doubling
        return list(range(1, len(targets) + 1))
    return [max(1, doublings(size, card)) for size in targets]


def _one_per_upscale(values: tuple[T, ...] | None, upscales: int) -> tuple[T, ...] | None:
    """As many values as upscaling stages (at least one): the last repeats."""
    if values is None:
        return None
    wanted = max(upscales, 1)
    return (values + (values[-1],) * wanted)[:wanted]


def _by_scale(values: tuple[T, ...], scales: Sequence[int]) -> tuple[T, ...]:
    """The value of each doubling, at least one value: the last is that of all further ones."""
    return tuple(values[min(scale, len(values)) - 1] for scale in scales or (1,))
