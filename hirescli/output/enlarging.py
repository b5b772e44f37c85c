"""A request to enlarge a picture: which size it asks for, in the picture's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hirescli.models.registry import find
from hirescli.output.pictures import look
from hirescli.planning.sizes import fitted_size
from hirescli.recipe import Recipe

_SIZES = ("size", "width_px", "height_px")


def enlarging(source: Path, fragments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What completes partial recipes to one that enlarges a picture.

    The last size that the fragments say counts: one number is the long side; without any, both
    sides are doubled.

    Args:
        source: The picture.
        fragments: Partial recipes, the later winning.

    Returns:
        A partial recipe to put behind the others.

    Raises:
        RequestError: If the picture cannot be read, or cannot be enlarged so.
    """
    said: dict[str, Any] = {}
    for fragment in fragments:
        said |= fragment
    made = {"source": str(source), "prompt": said.get("prompt", "")}
    empty: Mapping[str, Any] = {}
    sized = next((each for each in reversed(fragments) if _says_size(each)), empty)
    size = str(sized.get("size", ""))
    if sized and not size.isdigit():  # both sides, or what the recipe will name as no size
        return made | {key: value for key, value in sized.items() if key in _SIZES}
    model = said.get("model") or Recipe.model_fields["model"].default
    picture = look(source)
    card = find(model, said.get("revision"), weights=False).card
    if size:
        long_side_px = int(size)
    else:
        long_side_px = 2 * max(picture.width_px, picture.height_px)
        long_side_px = -(-long_side_px // card.multiple_px) * card.multiple_px
    width_px, height_px = fitted_size((picture.width_px, picture.height_px), long_side_px, card)
    return made | {"width_px": width_px, "height_px": height_px}


def _says_size(fragment: Mapping[str, Any]) -> bool:
    """Whether a partial recipe says a size, or half of one."""
    return any(fragment.get(key) is not None for key in _SIZES)
