"""Colours: hexadecimal to linear light, ramps, and a hand-made palette per time of day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hirescli.training.scenes.noise import Field, Picture

Colour = npt.NDArray[np.float32]  # (3,), linear light


def rgb(code: str, gain: float = 1.0) -> Colour:
    """Turn "#rrggbb" (sRGB) into linear light times `gain`."""
    digits = code.removeprefix("#")
    srgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)], dtype=np.float32) / 255
    return (srgb ** np.float32(2.2) * np.float32(gain)).astype(np.float32)


def mix(first: Colour | Picture, second: Colour | Picture, weight: Field) -> Picture:
    """Blend two colours or pictures by a (rows, columns) weight in 0..1."""
    w = weight[..., None]
    return (first * (1 - w) + second * w).astype(np.float32)


def ramp(value: Field, stops: list[tuple[float, str]]) -> Picture:
    """Map a field to colours by linear interpolation between (value, "#rrggbb") stops."""
    places = [place for place, _ in stops]
    colours = np.stack([rgb(code) for _, code in stops])
    # 1024 steps and one lookup: three interpolations per pixel would cost ten times as much.
    grid = np.linspace(places[0], places[-1], 1024)
    table = np.stack([np.interp(grid, places, colours[:, c]) for c in range(3)], axis=1)
    scale = 1023 / (places[-1] - places[0])
    index = np.clip((value - places[0]) * scale, 0, 1023).astype(np.int32)
    colour: Picture = table.astype(np.float32)[index]
    return colour


def tone_map(linear: Picture, exposure: float = 1.0) -> npt.NDArray[np.uint8]:
    """Expose linear light like film: 1 - exp(-x), a little more colour, sRGB's gamma."""
    shown = 1 - np.exp(-np.maximum(linear, 0) * np.float32(exposure * 1.25))
    grey = shown.mean(axis=-1, keepdims=True)
    shown = np.clip(grey + (shown - grey) * np.float32(1.12), 0, 1)
    picture: npt.NDArray[np.uint8] = (shown ** np.float32(1 / 2.2) * 255 + 0.5).astype(np.uint8)
    return picture


@dataclass(frozen=True)
class Light:
    """The light of one time of day, in linear light.

    `elevation` is the tangent of the sun's height; `fog` is how soon distance turns to haze.
    """

    time: str
    words: tuple[str, ...]
    zenith: Colour
    middle: Colour
    horizon: Colour
    sun: Colour
    direct: Colour
    ambient: Colour
    haze: Colour
    elevation: tuple[float, float]
    fog: float
    stars: float = 0.0
    disk: float = 1.0


LIGHTS: dict[str, Light] = {
    light.time: light
    for light in (
        Light(
            "dawn",
            ("at dawn", "at sunrise", "in early morning light"),
            rgb("#5f7fc0"),
            rgb("#c9a9c8"),
            rgb("#ffd0b0"),
            rgb("#fff0d0", 6.0),
            rgb("#ffc9a0", 1.8),
            rgb("#8f96c8", 0.6),
            rgb("#e8c4c4", 0.9),
            (0.10, 0.24),
            0.8,
        ),
        Light(
            "day",
            ("by day", "at noon under a blue sky", "in bright daylight"),
            rgb("#1f5fb8"),
            rgb("#5a9be0"),
            rgb("#bfdcf2"),
            rgb("#ffffff", 6.0),
            rgb("#fff4e0", 2.1),
            rgb("#7fa6dc", 0.62),
            rgb("#b4d2ec", 0.95),
            (0.7, 1.2),
            0.45,
            0.0,
            0.0,
        ),
        Light(
            "sunset",
            ("at sunset", "in the evening sun", "under an orange evening sky"),
            rgb("#473a86"),
            rgb("#d0608a"),
            rgb("#ff9a3c", 1.25),
            rgb("#ffd890", 7.0),
            rgb("#ff8f45", 2.6),
            rgb("#8064a4", 0.62),
            rgb("#f09a5a", 0.85),
            (0.05, 0.17),
            0.7,
        ),
        Light(
            "dusk",
            ("at dusk", "in blue twilight", "after sunset"),
            rgb("#14205a"),
            rgb("#5a4a94"),
            rgb("#e0788c", 0.85),
            rgb("#ffb090", 1.0),
            rgb("#e89ab0", 0.95),
            rgb("#5a68b8", 0.8),
            rgb("#7a6aa0", 0.6),
            (0.06, 0.12),
            0.75,
            0.25,
            0.0,
        ),
        Light(
            "night",
            ("at night", "under the stars", "by moonlight"),
            rgb("#050a20"),
            rgb("#0c1a42"),
            rgb("#23406e"),
            rgb("#e8f0ff", 2.2),
            rgb("#9ab8ff", 0.55),
            rgb("#2c4688", 0.5),
            rgb("#1c3058", 0.75),
            (0.35, 0.6),
            0.6,
            1.0,
            1.0,
        ),
        Light(
            "storm",
            ("in a storm", "under dark storm clouds", "in stormy weather"),
            rgb("#2c343e"),
            rgb("#4e5a64"),
            rgb("#98a4a4"),
            rgb("#ffffff", 0.0),
            rgb("#c8d0d0", 0.8),
            rgb("#8492a0", 0.7),
            rgb("#8a969a", 0.7),
            (0.8, 1.2),
            1.0,
            0.0,
            0.0,
        ),
    )
}
