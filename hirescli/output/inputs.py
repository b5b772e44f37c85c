"""The files that a recipe names: looked at before planning, so that it says what they are.

Paths become absolute: a recipe means the same in every folder of this machine.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, TypeVar

from hirescli.errors import RequestError
from hirescli.models.plugin_sources import (
    adapter_revision,
    cached_commit,
    controlnet_layout,
    controlnet_revision,
    image_adapter_revision,
)
from hirescli.models.registry import cards, find
from hirescli.models.sources import ModelSource
from hirescli.output.pictures import look
from hirescli.plugins import Control, Lora, Picture
from hirescli.recipe import Recipe

PictureT = TypeVar("PictureT", bound=Picture)


def identified(recipe: Recipe) -> Recipe:
    """The recipe with what tells the files and weights that it names from others.

    Of every file the SHA-256, of every picture the size; of weights a digest where they are
    local, and the commit where the hub's cache has them: none are fetched. Of a ControlNet for
    FLUX the config is read, and fetched where it is on the hub alone: plans depend on it.

    Raises:
        RequestError: If something is missing or no picture, or is another than the recipe was
            made with.
    """
    recipe = recipe.model_copy(update=_named_weights(recipe))
    return recipe.model_copy(
        update={
            "loras": tuple(map(_lora, recipe.loras)),
            "controls": tuple(map(_picture, recipe.controls)),
            "image_prompts": tuple(map(_picture, recipe.image_prompts)),
            "init_image": recipe.init_image and _picture(recipe.init_image),
            "source": recipe.source and _picture(recipe.source),
        }
    )


def _named_weights(recipe: Recipe) -> dict[str, Any]:
    """What changes of a recipe's model and of what plugs into it, besides files."""
    said: dict[str, Any] = {"model": recipe.model, "revision": recipe.revision}
    by_name = {card.name: card for card in cards()}
    if recipe.model in by_name:
        hub_id, usual = by_name[recipe.model].hub_id, by_name[recipe.model].revision
        if hub_id is not None and (commit := _cached(hub_id, recipe.revision or usual)):
            said["revision"] = commit
    else:
        said["model"] = _absolute(recipe.model)
    source = find(said["model"], said["revision"], weights=False)
    card = source.card
    if card.closed:  # planning refuses what would plug in
        return said
    said["controls"] = tuple(_control(each, source) for each in recipe.controls)
    if recipe.attention != "full":
        wanted = recipe.adapter_revision
        found = adapter_revision(recipe.adapter, wanted, card)
        _check_weights(recipe.adapter or card.adapter_id, wanted, found)
        said["adapter_revision"] = found
        said["adapter"] = recipe.adapter and _absolute(recipe.adapter)
    if recipe.image_prompts:
        wanted = recipe.image_adapter_revision
        found = image_adapter_revision(recipe.image_adapter, wanted, card)
        _check_weights(recipe.image_adapter or card.image_adapter_id, wanted, found)
        said["image_adapter_revision"] = found
        said["image_adapter"] = recipe.image_adapter and _absolute(recipe.image_adapter)
    return said


def _cached(hub_id: str, revision: str) -> str | None:
    """The commit in the cache; None: there is none."""
    found = cached_commit(hub_id, revision)
    return None if found == revision else found


def _control(control: Control, source: ModelSource) -> Control:
    card = source.card
    layout = controlnet_layout(control.kind, control.revision, model=source)
    found = controlnet_revision(control.kind, control.revision, card)
    _check_weights(control.kind, control.revision, found)
    known = control.kind in dict(card.controls)
    kind = control.kind if known else _absolute(control.kind)
    return control.identified(kind=kind, revision=found, layout=layout)


def _absolute(named: str) -> str:
    """The path of what is on this machine; of what is not its name."""
    path = Path(named).expanduser()
    return os.path.abspath(path) if path.exists() else named


def _check_weights(named: str | None, wanted: str | None, found: str | None) -> None:
    """Refuse other weights than a recipe was made with; a branch says nothing of them."""
    digests = [each for each in (wanted, found) if each is not None and each.startswith("local-")]
    if digests and wanted is not None and wanted != found:
        raise RequestError(
            f"{named} is not what the recipe was made with ({found}, not {wanted}); put that "
            "back, or name this one with its option again"
        )


def _picture(picture: PictureT) -> PictureT:
    facts = look(Path(picture.path))
    _check_same(picture.path, picture.sha256, facts.sha256)
    return picture.identified(
        path=os.path.abspath(picture.path),
        sha256=facts.sha256,
        width_px=facts.width_px,
        height_px=facts.height_px,
    )


def _lora(lora: Lora) -> Lora:
    try:
        with open(lora.path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"LoRA {lora.path} cannot be read ({getattr(error, 'strerror', None) or error}); give "
            "a .safetensors file"
        ) from error
    _check_same(lora.path, lora.sha256, sha256)
    path = os.path.abspath(lora.path)
    return lora.identified(path=path, sha256=sha256, size_bytes=size_bytes)


def _check_same(path: str, wanted: str | None, found: str) -> None:
    if wanted is not None and wanted != found:
        raise RequestError(
            f"{path} is not the file that the recipe was made with (SHA-256 {found[:12]}..., not "
            f"{wanted[:12]}...); put that back, or name this one with its option again"
        )
