"""What a run has ready before its first stage: the model where it computes, and its guides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hirescli.cascade.stages import Guides
from hirescli.models.load import Model, load
from hirescli.models.plugins import (
    apply_loras,
    image_embeds,
    load_controlnet,
    unmount_image_adapter,
)
from hirescli.models.registry import ModelSource, find
from hirescli.output.pictures import to_spool

if TYPE_CHECKING:
    from hirescli.planning.plan import Plan, ValidatedPlan
    from hirescli.recipe import Recipe


@dataclass
class Models:
    """Loads each model once for all images of a run.

    Attributes:
        plans: All that will be run: their prompts are encoded when a model is loaded, and its
            text encoders are let go.
    """

    plans: Sequence[ValidatedPlan]
    _sources: dict[tuple[Any, ...], ModelSource] = field(default_factory=dict)
    _loaded: dict[tuple[Any, ...], Model] = field(default_factory=dict)

    def find(self) -> None:
        """Find the weights of all models, before anything is made.

        Raises:
            RequestError: If some are not here, and cannot be fetched.
        """
        for validated in self.plans:
            recipe = validated.recipe
            key = (recipe.model, recipe.revision, recipe.adapter)
            if key not in self._sources:
                self._sources[key] = find(*key[:2], adapter=recipe.adapter)

    def of(self, plan: Plan) -> Model:
        """The model of a plan, with its LoRAs, where it computes.

        Raises:
            RequestError: If weights are missing, damaged, or do not fit each other.
            RunError: As `hirescli.models.load.load`.
        """
        key = _key(plan)
        if key not in self._loaded:
            self._loaded.clear()  # one at a time in memory
            self._loaded[key] = self._load(plan)
        return self._loaded[key]

    def _load(self, plan: Plan) -> Model:
        recipe = plan.recipe
        assert recipe.dtype is not None, "the recipe is not resolved"
        linear = any(stage.attention == "linear" for stage in plan.stages)
        source = self._sources[recipe.model, recipe.revision, recipe.adapter]
        model = load(source, dtype=recipe.dtype, vae_dtype=recipe.vae_dtype, linear=linear)
        apply_loras(model, [(Path(lora.path), lora.scale) for lora in recipe.loras])
        if model.card.family != "builtin":
            for other in self.plans:
                if _key(other.plan) == _key(plan):
                    model.text.encode(other.recipe.prompt, other.recipe.negative_prompt)
            model.text.free()
        if recipe.device == "cuda" and not plan.budgets.loads_weights:
            modules: list[Any] = [model.unet, model.autoencoder, model.linfusion]
            for module in modules:
                if module is not None:
                    module.to("cuda")
        return model


def _key(plan: Plan) -> tuple[Any, ...]:
    recipe = plan.recipe
    linear = any(stage.attention == "linear" for stage in plan.stages)
    return (
        recipe.model, recipe.revision, recipe.dtype, recipe.vae_dtype, recipe.adapter, linear,
        recipe.loras, recipe.device, plan.budgets.loads_weights,
    )  # fmt: skip


@contextmanager
def guiding(recipe: Recipe, model: Model, spool_of: Callable[[str], Path]) -> Iterator[Guides]:
    """Control images and image prompts of a recipe, ready for every stage.

    While the context lasts, an IP-Adapter sits in the model's denoiser.

    Args:
        recipe: Of the image.
        model: It is drawn with.
        spool_of: Where a spool of a name goes.

    Raises:
        RequestError: If a ControlNet or an IP-Adapter is missing or of another family, or a
            picture is damaged.
    """
    place, dtype = torch.device(recipe.device or "cpu"), model.unet.dtype
    controlnets = []
    for number, control in enumerate(recipe.controls):
        module = load_controlnet(model, control.kind).to(place, dtype)
        spool = spool_of(f"control-{number}")
        to_spool(control.path, spool)
        controlnets.append((module, spool, control.scale))
    embeds = None
    if recipe.image_prompts:
        pictures = [(Path(each.path), each.scale) for each in recipe.image_prompts]
        embeds = [
            each.to(place, dtype) for each in image_embeds(model, recipe.image_adapter, pictures)
        ]
    try:
        yield Guides(tuple(controlnets), embeds)
    finally:
        if embeds is not None:
            unmount_image_adapter(model)
