"""Rendered training pictures with exact captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hirescli.training.scenes.aerial import islands
from hirescli.training.scenes.aurora import aurora
from hirescli.training.scenes.captions import captions
from hirescli.training.scenes.clouds import sky
from hirescli.training.scenes.forest import forest
from hirescli.training.scenes.grounds import canyon, dunes, hills, mountains
from hirescli.training.scenes.materials import stone, wood
from hirescli.training.scenes.palette import tone_map
from hirescli.training.scenes.planets import planet
from hirescli.training.scenes.space import galaxy, nebula
from hirescli.training.scenes.view import ZOOMS, Painting
from hirescli.training.scenes.water import sea

Painter = Callable[[np.random.Generator, int, str], Painting]

_PAINTERS: dict[str, Painter] = {
    "mountains": mountains,
    "dunes": dunes,
    "canyon": canyon,
    "hills": hills,
    "forest": forest,
    "aurora": aurora,
    "sea": sea,
    "sky": sky,
    "nebula": nebula,
    "galaxy": galaxy,
    "planet": planet,
    "islands": islands,
    "stone": stone,
    "wood": wood,
}
FAMILIES: tuple[str, ...] = tuple(_PAINTERS)

# Samples per pixel side: textures are band-limited already, edges need the rest.
OVERSAMPLING = 1.3
# Deviation of the 8-bit picture below which a crop says nothing (an empty sky, flat water).
MIN_DEVIATION = 7.0
ATTEMPTS = 3


@dataclass(frozen=True)
class Scene:
    """A rendered picture and what is true of it.

    `picture` is (size, size, 3) uint8 sRGB; `captions` are at least three paraphrases.
    """

    picture: npt.NDArray[np.uint8]
    captions: tuple[str, ...]
    family: str
    attributes: dict[str, str]


def _shrink(picture: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.uint8]:
    if picture.shape[0] == size_px:
        return picture
    small = Image.fromarray(picture).resize((size_px, size_px), Image.Resampling.LANCZOS)
    return np.asarray(small)


def render(
    *, seed: int, size_px: int, family: str | None = None, zoom: str | None = None
) -> Scene:
    """Render one scene; the same arguments give the same scene.

    Args:
        seed: 0 or more.
        size_px: side of the picture, 16 or more.
        family: one of `FAMILIES`; chosen by the seed if absent.
        zoom: "wide", "close" (about 4 times) or "detail" (about 16 times); chosen by the seed
            if absent.

    Raises:
        ValueError: if `family` or `zoom` is unknown, or `size_px` below 16.
    """
    if family is not None and family not in _PAINTERS:
        raise ValueError(f"unknown family {family!r}; use one of {', '.join(FAMILIES)}")
    if zoom is not None and zoom not in ZOOMS:
        raise ValueError(f"unknown zoom {zoom!r}; use one of {', '.join(ZOOMS)}")
    if size_px < 16:
        raise ValueError(f"size_px is {size_px}, needs 16 or more")
    chooser = np.random.default_rng([seed, 1])
    drawn_family, drawn_zoom = str(chooser.choice(FAMILIES)), str(chooser.choice(list(ZOOMS)))
    family, zoom = family or drawn_family, zoom or drawn_zoom
    names: dict[str, Any] = {"best": -1.0}
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, 2, attempt, *family.encode(), *zoom.encode()])
        painting = _PAINTERS[family](rng, int(size_px * OVERSAMPLING), zoom)
        picture = _shrink(tone_map(painting.linear, painting.exposure), size_px)
        deviation = float(picture.std(axis=(0, 1)).mean())
        if deviation > names["best"]:
            names = {
                "best": deviation,
                "scene": Scene(
                    picture,
                    captions(rng, painting, zoom),
                    family,
                    {**painting.attributes, "zoom": zoom},
                ),
            }
        if deviation >= MIN_DEVIATION:
            break
    scene: Scene = names["scene"]
    return scene


__all__ = ["FAMILIES", "Scene", "render"]
