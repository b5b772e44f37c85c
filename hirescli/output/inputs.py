"""The files that a recipe names: looked at before planning, so that it says what they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

from hirescli.errors import RequestError
from hirescli.output.pictures import look
from hirescli.plugins import Lora, Picture
from hirescli.recipe import Recipe

PictureT = TypeVar("PictureT", bound=Picture)


def identified(recipe: Recipe) -> Recipe:
    """The recipe with the SHA-256 of every file it names, and the size of every picture.

    Raises:
        RequestError: If a file is missing or no picture, or is another than the recipe was made
            with.
    """
    return recipe.model_copy(
        update={
            "loras": tuple(map(_lora, recipe.loras)),
            "controls": tuple(map(_picture, recipe.controls)),
            "image_prompts": tuple(map(_picture, recipe.image_prompts)),
            "init_image": recipe.init_image and _picture(recipe.init_image),
            "source": recipe.source and _picture(recipe.source),
        }
    )


def _picture(picture: PictureT) -> PictureT:
    facts = look(Path(picture.path))
    _check_same(picture.path, picture.sha256, facts.sha256)
    return picture.identified(
        sha256=facts.sha256, width_px=facts.width_px, height_px=facts.height_px
    )


def _lora(lora: Lora) -> Lora:
    try:
        with open(lora.path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"LoRA {lora.path} cannot be read ({getattr(error, 'strerror', None) or error}); give "
            "a .safetensors file"
        ) from error
    _check_same(lora.path, lora.sha256, sha256)
    return lora.identified(sha256=sha256)


def _check_same(path: str, wanted: str | None, found: str) -> None:
    if wanted is not None and wanted != found:
        raise RequestError(
            f"{path} is not the file that the recipe was made with (SHA-256 {found[:12]}..., not "
            f"{wanted[:12]}...); put that back, or name this one with its option again"
        )
