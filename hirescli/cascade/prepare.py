"""What a run has ready before its first stage: the model where it computes, and its guides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from hirescli.cascade.stages import Guides
from hirescli.models.load import Model, load
from hirescli.models.loras import apply_loras, check_loras
from hirescli.models.plugin_sources import PluginSource, find_controlnet, find_image_adapter
from hirescli.models.plugins import image_embeds, load_controlnet, unmount_image_adapter
from hirescli.models.registry import ModelSource, find, with_found_adapter
from hirescli.output.pictures import shrunk_spool, to_spool
from hirescli.output.spool import Spool

if TYPE_CHECKING:
    from hirescli.planning.plan import Plan, ValidatedPlan
    from hirescli.recipe import Recipe

Key = tuple[Any, ...]
_CONTROL, _IMAGES = "control", "images"
_MOST_SIDE_PX = 1024  # of a picture that an image encoder reads; it shrinks it to about 224


@dataclass
class Models:
    """Loads each model once for all images of a run.

    Attributes:
        plans: All that will be run: their prompts are encoded when a model is loaded, and its
            text encoders are let go.
    """

    plans: Sequence[ValidatedPlan]
    _sources: dict[Key, ModelSource] = field(default_factory=dict)
    _plugged: dict[Key, dict[Key, PluginSource]] = field(default_factory=dict)
    _checked: set[Key] = field(default_factory=set)  # sources with LoRAs that fit them
    _loaded: dict[Key, Model] = field(default_factory=dict)

    def find(self) -> tuple[ValidatedPlan, ...]:
        """Find the weights of all models and of what plugs into them, before anything is made.

        Headers and configs are read, so that what is of another family is refused now.

        Returns:
            The plans, their recipes with the commits and digests of what was found.

        Raises:
            RequestError: If some are not here, and cannot be fetched, or do not fit each other.
            RunError: If a download fails.
        """
        return tuple(map(self._find, self.plans))

    def _find(self, validated: ValidatedPlan) -> ValidatedPlan:
        recipe, key = validated.recipe, _source_key(validated.recipe)
        if key not in self._sources:
            self._sources[key] = self._found(recipe)
        source, plugged = self._sources[key], self._plugged.setdefault(key, {})
        if (key, recipe.loras) not in self._checked:
            check_loras(source, [Path(lora.path) for lora in recipe.loras])
            self._checked.add((key, recipe.loras))
        for name in _plugin_names(recipe):
            if name not in plugged:
                plugged[name] = _looked_for(*name, source)
        made = _as_found(recipe, source, plugged)
        self._sources[_source_key(made)] = source
        names = zip(_plugin_names(made), _plugin_names(recipe), strict=True)
        known = {name: plugged[before] for name, before in names}
        self._plugged.setdefault(_source_key(made), {}).update(known)
        plan = dataclasses.replace(validated.plan, recipe=made)
        return dataclasses.replace(validated, plan=plan)

    def _found(self, recipe: Recipe) -> ModelSource:
        found = find(
            recipe.model, recipe.revision,
            adapter=recipe.adapter, adapter_revision=recipe.adapter_revision,
        )  # fmt: skip
        alike = [each for each in self.plans if _source_key(each.recipe) == _source_key(recipe)]
        mounted = not found.card.closed and any(_mounts(each.plan) for each in alike)
        return with_found_adapter(found) if mounted else found

    def of(self, plan: Plan) -> Model:
        """The model of a plan, with its LoRAs, where it computes.

        Raises:
            RequestError: If weights are missing, damaged, or do not fit each other.
            RunError: As `hirescli.models.load.load`.
        """
        key = self._key(plan)
        if key not in self._loaded:
            self._loaded.clear()  # one at a time in memory
            self._loaded[key] = self._load(plan)
        return self._loaded[key]

    def _load(self, plan: Plan) -> Model:
        recipe = plan.recipe
        assert recipe.dtype is not None, "the recipe is not resolved"
        source_key = _source_key(recipe)
        model = load(
            self._sources[source_key],
            dtype=recipe.dtype, vae_dtype=recipe.vae_dtype, linear=_mounts(plan),
        )  # fmt: skip
        model.plugged.sources.update(self._plugged[source_key])
        apply_loras(model, [(Path(lora.path), lora.scale) for lora in recipe.loras])
        if model.card.family != "builtin":
            for other in self.plans:
                if self._key(other.plan) == self._key(plan):
                    model.text.encode(other.recipe.prompt, other.recipe.negative_prompt)
            model.text.free()
        if recipe.device == "cuda" and not plan.budgets.loads_weights:
            modules: list[Any] = [model.unet, model.autoencoder, model.linfusion]
            for module in modules:
                if module is not None:
                    module.to("cuda")
        return model

    def _key(self, plan: Plan) -> Key:
        """Equal for plans that are made with the same modules."""
        recipe = plan.recipe
        return (
            id(self._sources[_source_key(recipe)]), recipe.dtype, recipe.vae_dtype, _mounts(plan),
            recipe.loras, recipe.device, plan.budgets.loads_weights,
        )  # fmt: skip


def _source_key(recipe: Recipe) -> Key:
    return recipe.model, recipe.revision, recipe.adapter, recipe.adapter_revision


def _mounts(plan: Plan) -> bool:
    return any(stage.attention == "linear" for stage in plan.stages)


def _plugin_names(recipe: Recipe) -> list[tuple[str, str | None, str | None]]:
    """What a recipe calls its ControlNets, in order, and its IP-Adapter."""
    names: list[tuple[str, str | None, str | None]]
    names = [(_CONTROL, each.kind, each.revision) for each in recipe.controls]
    if recipe.image_prompts:
        names.append((_IMAGES, recipe.image_adapter, recipe.image_adapter_revision))
    return names


def _as_found(recipe: Recipe, source: ModelSource, plugged: dict[Key, PluginSource]) -> Recipe:
    """The recipe with the commits and digests of what it is made with."""
    said: dict[str, Any] = {"revision": source.commit or recipe.revision}
    if source.adapter is not None and source.adapter.path is not None:
        said["adapter_revision"] = source.adapter.commit or recipe.adapter_revision
    found = [plugged[name].revision for name in _plugin_names(recipe)]
    said["controls"] = tuple(
        control.identified(revision=revision)
        for control, revision in zip(recipe.controls, found, strict=False)
    )
    if recipe.image_prompts:
        said["image_adapter_revision"] = found[-1]
    return recipe.model_copy(update=said)


def guides_of(recipe: Recipe, model: Model, spool_of: Callable[[str], Path]) -> Guides:
    """Control images and image prompts of a recipe, ready for every stage.

    ControlNets and the IP-Adapter, which sits in the model's denoiser, stay for the next recipe
    of the same model, which lets go what it does not use.

    Args:
        recipe: Of the image.
        model: It is drawn with.
        spool_of: Where a spool of a name goes.

    Raises:
        RequestError: If a ControlNet or an IP-Adapter is missing or of another family, or a
            picture is damaged.
    """
    place = torch.device(recipe.device or "cpu")
    modules = _controlnets(recipe, model)
    controls = []
    for number, (control, module) in enumerate(zip(recipe.controls, modules, strict=True)):
        spool = spool_of(f"control-{number}")
        to_spool(control.path, spool)
        controls.append((module, spool, control.scale))
    return Guides(tuple(controls), _embeds(recipe, model, spool_of, place))


def _controlnets(recipe: Recipe, model: Model) -> list[Any]:
    """One for each control: two of a kind are two modules, each with a picture of its own.

    Their weights rest where those of the denoiser do.
    """
    sources = [_source(model, *name) for name in _plugin_names(recipe) if name[0] == _CONTROL]
    kept = model.plugged.controlnets
    wanted = list(enumerate(sources))
    for other in [key for key in kept if key not in wanted]:
        del kept[other]
    for key in wanted:
        if key not in kept:
            kept[key] = load_controlnet(model, key[1]).to(model.unet.device, model.unet.dtype)
    return [kept[key] for key in wanted]


def _embeds(
    recipe: Recipe, model: Model, spool_of: Callable[[str], Path], place: torch.device
) -> list[torch.Tensor] | None:
    plugged = model.plugged
    wanted = (recipe.image_adapter, recipe.image_adapter_revision, recipe.image_prompts)
    if plugged.images is not None and plugged.images != wanted:
        unmount_image_adapter(model)
        plugged.images, plugged.embeds = None, []
    if not recipe.image_prompts:
        return None
    if plugged.images is None:
        source = _source(model, _IMAGES, *wanted[:2])
        pictures = [
            (_shrunk(each.path, spool_of(f"prompt-{number}"), spool_of("smaller")), each.scale)
            for number, each in enumerate(recipe.image_prompts)
        ]
        made = image_embeds(model, source, pictures)
        plugged.embeds = [each.to(place, model.unet.dtype) for each in made]
        plugged.images = wanted
    return list(plugged.embeds)


def _source(model: Model, what: str, named: str | None, revision: str | None) -> PluginSource:
    """Where a plug-in was found before the run, else where it is now."""
    found = model.plugged.sources.get((what, named, revision))
    return found or _looked_for(what, named, revision, model.source)


def _looked_for(
    what: str, named: str | None, revision: str | None, model: ModelSource
) -> PluginSource:
    if what == _CONTROL:
        assert named is not None, "a control has a kind"
        return find_controlnet(named, revision, model=model)
    return find_image_adapter(named, revision, model=model)


def _shrunk(path: str, spool: Path, smaller: Path) -> Image.Image:
    """A picture, upright, sRGB on white, no larger than an image encoder has use for."""
    facts = to_spool(path, spool)
    scale = min(1.0, _MOST_SIDE_PX / max(facts.width_px, facts.height_px))
    width_px, height_px = (max(1, round(n * scale)) for n in (facts.width_px, facts.height_px))
    try:
        read = shrunk_spool(spool, smaller, width_px=width_px, height_px=height_px)
        with Spool.open(read) as opened:
            rows = opened.read_rows(0, opened.height_px)
    finally:
        spool.unlink(missing_ok=True)
        smaller.unlink(missing_ok=True)
    return Image.fromarray(((rows.astype(np.uint32) + 128) // 257).astype(np.uint8))
