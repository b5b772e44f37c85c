"""The `parameters` text of A1111's web interface, written and read; many programs know it.

References:
    AUTOMATIC1111, stable-diffusion-webui: prompt, then a line "Negative prompt: ...", then one
    of "Steps: 20, Sampler: ..., CFG scale: ..., Seed: ..., Size: 512x512, Model: ...".
"""

from __future__ import annotations

import json
import re
from typing import Any

from hirescli.recipe import Recipe

_NEGATIVE = "Negative prompt:"
# A key, and a value that is quoted where it holds commas.
_FIELD = re.compile(r'\s*([A-Za-z][\w /-]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
# How the fields are called here, and what they are.
_KNOWN = {
    "Steps": ("steps", int),
    "Sampler": ("sampler", str),
    "CFG scale": ("cfg_scale", float),
    "Seed": ("seed", int),
    "Size": ("size", str),
    "Model": ("model", str),
}


def parameters_text(recipe: Recipe) -> str:
    """The text of a recipe."""
    said = {
        "Steps": recipe.steps,
        "Sampler": recipe.scheduler,
        "CFG scale": recipe.guidance_scale,
        "Seed": recipe.seed,
        "Size": f"{recipe.width_px}x{recipe.height_px}",
        "Model": recipe.model,
        "Version": "hires",
    }
    last = ", ".join(f"{key}: {value}" for key, value in said.items() if value is not None)
    negative = [f"{_NEGATIVE} {recipe.negative_prompt}"] if recipe.negative_prompt else []
    return "\n".join([recipe.prompt, *negative, last])


def read_parameters(text: str) -> dict[str, Any] | None:
    """What such a text says.

    Args:
        text: Of a picture of any program.

    Returns:
        `prompt`, `negative_prompt`, `steps`, `sampler`, `cfg_scale`, `seed`, `size`, `model` as
        far as they are said, and all else under `others`; None if it is no such text.
    """
    lines = text.strip().splitlines()
    place = next((i for i in range(len(lines) - 1, -1, -1) if _is_last(lines[i])), None)
    if place is None:
        return None
    prompt, _, negative = "\n".join(["", *lines[:place]]).partition("\n" + _NEGATIVE)
    found: dict[str, Any] = {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    others: dict[str, str] = {}
    for key, value in _FIELD.findall(", ".join(lines[place:])):
        name, kind = _KNOWN.get(key, (None, str))
        plain = _plain(value)
        try:
            target, place_in = (others, key) if name is None else (found, name)
            target[place_in] = kind(plain)
        except ValueError:  # a number that is none
            others[key] = plain
    return found | ({"others": others} if others else {})


def _is_last(line: str) -> bool:
    return line.startswith("Steps: ") or ("Seed: " in line and "Sampler: " in line)


def _plain(value: str) -> str:
    if value.startswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            pass
    return value.strip()
