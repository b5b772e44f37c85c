"""Whether the choices of a recipe work with a model."""

from __future__ import annotations

from hirescli.errors import RequestError
from hirescli.planning.card import Card
from hirescli.recipe import Recipe

_MOST_STRETCH = 1.03  # that nobody sees, and that sides of whole multiples ask for


def check_choices(recipe: Recipe, card: Card) -> None:
    """Refuse what the model of a card cannot do (sizes are `sizes.py`'s matter).

    Raises:
        RequestError: Naming the first choice that does not work, and what does.
    """
    _check_scheduler(recipe, card)
    _check_attention(recipe, card)
    _check_plugins(recipe, card)
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


def _check_scheduler(recipe: Recipe, card: Card) -> None:
    if recipe.scheduler not in (None, *card.schedulers):
        raise RequestError(
            f'scheduler "{recipe.scheduler}" does not work with model `{card.name}`; '
            f"use one of {', '.join(card.schedulers)}"
        )


def _check_attention(recipe: Recipe, card: Card) -> None:
    method = "CLEAR" if card.is_transformer else "LinFusion"
    if recipe.attention == "linear" and card.adapter is None and recipe.adapter is None:
        raise RequestError(
            f"--attention linear needs {method} weights, and none are known for model "
            f"`{card.name}`; name some with --adapter"
        )


def _check_plugins(recipe: Recipe, card: Card) -> None:
    asked = {
        "--lora": recipe.loras,
        "--control": recipe.controls,
        "--image-prompt": recipe.image_prompts,
        "--adapter": recipe.adapter,
    }
    if card.closed:
        for flag, given in asked.items():
            if given:
                raise RequestError(
                    f"{flag} does not work with model `{card.name}`: nothing of the kind was made "
                    "for it; choose a Stable Diffusion model with --model"
                )
    if card.is_transformer:
        for flag in ("--control", "--image-prompt"):
            if asked[flag] and card.family != "flux":
                raise RequestError(
                    f"{flag} does not work with model `{card.name}` yet: it is run with Stable "
                    "Diffusion 1.5, 2.1 and XL and with FLUX; leave it out"
                )
        _check_layouts(recipe)
    if recipe.method == "skip" and card.is_transformer:
        raise RequestError(
            f"--method skip does not work with model `{card.name}`, which has no convolutions to "
            "dilate; leave it out"
        )
    if recipe.image_adapter is not None and not recipe.image_prompts:
        raise RequestError(
            "--image-adapter does nothing by itself: say with --image-prompt what it shall look at"
        )
    if recipe.source is not None and recipe.init_image is not None:
        raise RequestError("an enlarged picture has no base stage: leave --init-image out")


def _check_layouts(recipe: Recipe) -> None:
    """Diffusers adds what several ControlNets for FLUX give block by block, up to the fewest."""
    layouts = {control.layout for control in recipe.controls}
    if len(layouts) > 1:
        said = ", ".join(f"{each.kind}: {each.layout}" for each in recipe.controls)
        raise RequestError(
            "several --control for FLUX need ControlNets of the same numbers of blocks, and all "
            f"with guidance (g) or none; these have {said}; give one of them"
        )


def stretched(recipe: Recipe) -> list[str]:
    """What is to be said of pictures whose shape is not that of the picture that is made."""
    pictures = [*recipe.controls, *([recipe.init_image] if recipe.init_image else [])]
    aspect = recipe.width_px / recipe.height_px
    return [
        f"{each.path} ({each.width_px}x{each.height_px} px) has another shape than the picture: "
        "it is stretched; crop it to keep its proportions"
        for each in pictures
        if each.width_px
        and each.height_px
        and not 1 / _MOST_STRETCH < each.width_px / each.height_px / aspect < _MOST_STRETCH
    ]
