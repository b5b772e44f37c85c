"""Polished stone and wood."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes.noise import Field, smoothstep
from hirescli.training.scenes.palette import mix, ramp, rgb
from hirescli.training.scenes.view import Painting, window

Stops = list[tuple[float, str]]

AGATES: dict[str, Stops] = {
    "blue": [
        (0, "#071a3a"),
        (0.25, "#1a5aa0"),
        (0.45, "#9fd0ea"),
        (0.6, "#2a78bc"),
        (0.8, "#e6f2f6"),
        (1, "#0c3468"),
    ],
    "green": [
        (0, "#05231a"),
        (0.25, "#1c7a4c"),
        (0.45, "#a6e0b4"),
        (0.6, "#2f9c68"),
        (0.8, "#e2f4dc"),
        (1, "#0b4530"),
    ],
    "red": [
        (0, "#2c0508"),
        (0.25, "#a8241c"),
        (0.45, "#f0b08c"),
        (0.6, "#c8402c"),
        (0.8, "#fbe6d4"),
        (1, "#5c0c10"),
    ],
    "purple": [
        (0, "#180a34"),
        (0.25, "#6a3aa4"),
        (0.45, "#d4b4ec"),
        (0.6, "#8452c0"),
        (0.8, "#f2e8fa"),
        (1, "#34145e"),
    ],
    "orange": [
        (0, "#3a1602"),
        (0.25, "#c8641a"),
        (0.45, "#fcd494"),
        (0.6, "#e08a30"),
        (0.8, "#fff0d6"),
        (1, "#6c2c08"),
    ],
}
MARBLES: dict[str, tuple[str, str, str]] = {
    "white": ("#eeece8", "#c4c4c6", "#6a6c74"),
    "black": ("#121318", "#26282e", "#e4dcc8"),
    "green": ("#123c2c", "#1f6044", "#d8ecd8"),
    "blue": ("#12305e", "#28549a", "#e8d8a4"),
    "red": ("#6a1c1a", "#93362c", "#f2dcc8"),
}
WOODS: dict[str, tuple[str, str, str, str]] = {
    "light": ("pale", "#e8cc9c", "#cfa46a", "#a87440"),
    "golden": ("golden", "#d89a4c", "#b06c28", "#7a4214"),
    "red": ("red", "#b0583a", "#803020", "#4c160e"),
    "dark": ("dark", "#6e4a34", "#472c1e", "#221410"),
}


def stone(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint banded agate or veined marble."""
    return agate(rng, px, zoom) if rng.random() < 0.55 else marble(rng, px, zoom)


def agate(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint agate: smooth level lines of a warped field, coloured in bands."""
    view = window(rng, zoom, px)
    colour = str(rng.choice(list(AGATES)))
    body = view.fractal(rng, beta=3.2, cycles=1.3)
    rough = view.fractal(rng, beta=1.9, cycles=5.0)
    growth = body + 0.16 / view.factor**0.5 * rough
    bands = rng.uniform(1.3, 2.0)
    fine = np.sin(growth * np.float32(rng.uniform(38, 60))) * 0.5
    phase = growth * np.float32(bands) + np.float32(rng.uniform(0, 1)) + fine * np.float32(0.035)
    wrapped = np.abs(np.mod(phase, 2) - 1)
    linear = ramp(wrapped, AGATES[colour])
    cloudy = 1 + 0.12 * view.fractal(rng, beta=1.4, cycles=10.0)
    crystal = smoothstep(1.35, 1.5, body)
    glint = np.abs(view.fractal(rng, beta=1.1, cycles=30.0)) ** 1.5
    linear = mix(linear * cloudy[..., None], rgb("#f6f2f4") * (0.35 + glint[..., None]), crystal)
    gloss = np.exp(-((view.fractal(rng, beta=3.5, cycles=0.7) - 1.4) ** 2) * 3)
    linear += (gloss * np.float32(0.1))[..., None]
    return Painting(
        linear,
        (
            f"polished {colour} agate stone",
            f"{colour} agate with bands",
            f"a slice of {colour} banded stone, agate",
        ),
        details=(),
        attributes={"material": "agate", "colour": colour},
        exposure=1.25,
    )


def _veins(rng: np.random.Generator, view_fractal: Field, twist: Field, width: float) -> Field:
    bent = view_fractal + np.float32(0.25) * twist
    slope_y, slope_x = np.gradient(bent)
    slope = np.sqrt(slope_x**2 + slope_y**2) * bent.shape[0] + np.float32(0.6)
    # Distance to the zero level, in picture widths, whatever the field's slope is there.
    near: Field = np.exp(-np.abs(bent) / slope / np.float32(width)).astype(np.float32)
    return near


def marble(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint marble: cloudy ground, thin veins along the zero levels of warped fields."""
    view = window(rng, zoom, px)
    colour = str(rng.choice(list(MARBLES)))
    ground, shade, vein = (rgb(code) for code in MARBLES[colour])
    twist = view.fractal(rng, beta=1.7, cycles=4.0)
    cloud = view.fractal(rng, beta=1.8, cycles=1.5)
    linear = mix(ground, shade, smoothstep(-1.2, 1.6, cloud))
    k = view.factor**0.6
    for cycles, width, strength in ((1.2, 0.009, 0.95), (2.6, 0.005, 0.7), (6.0, 0.003, 0.5)):
        lines = _veins(
            rng, view.fractal(rng, beta=2.2, cycles=cycles, stretch=1.3), twist, width * k
        )
        patch = smoothstep(-0.4, 1.2, view.fractal(rng, beta=2.4, cycles=1.5))
        linear = mix(linear, vein, lines * patch * np.float32(strength))
    linear *= (1 + 0.09 * view.fractal(rng, beta=1.2, cycles=12.0))[..., None]
    return Painting(
        linear,
        (
            f"polished {colour} marble stone",
            f"{colour} marble with veins",
            f"a slab of {colour} veined stone, marble",
        ),
        attributes={"material": "marble", "colour": colour},
        exposure=1.35,
    )


def wood(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint planed wood: growth rings cut along the trunk, fibres, pores, and knots."""
    view = window(rng, zoom, px)
    name = str(rng.choice(list(WOODS)))
    word, light, middle, dark = WOODS[name]
    x, y = view.grid()
    knots = int(rng.integers(0, 3))
    # The cut plane meets the rings: distance from a slightly tilted, wavering trunk axis.
    wave = view.fractal(rng, beta=3.0, cycles=1.0, stretch=2.5)
    across = (y - np.float32(rng.uniform(-0.3, 1.3))) * np.float32(rng.uniform(1.5, 2.5))
    depth = np.float32(rng.uniform(0.15, 0.5)) + 0.5 * (x - np.float32(rng.uniform(0, 1))) ** 2
    rings = np.sqrt(across**2 + depth**2) * 9 + wave * np.float32(0.35 / view.factor**0.8)
    shade = np.zeros((px, px), np.float32)
    for _ in range(knots):
        kx, ky = rng.uniform(0.15, 0.85, 2)
        size = rng.uniform(0.03, 0.055)
        radius = np.sqrt(((x - kx) * 0.7) ** 2 + (y - ky) ** 2) + np.float32(1e-4)
        near = np.exp(-((radius / (size * 3)) ** 2))
        rings = rings * (1 - near) + near * (radius * 55 + 0.12 * wave)
        shade = np.maximum(shade, np.exp(-((radius / size) ** 4)))
    fibre = view.fractal(rng, beta=1.1, cycles=24.0, stretch=6.0)
    turn = np.mod(rings + 0.05 * fibre / view.factor**0.3, 1.0)
    late = smoothstep(0.25, 0.92, turn) * (1 - smoothstep(0.94, 1.0, turn))
    tone = late * 0.75 + 0.10 * fibre + 0.12 * view.fractal(rng, beta=2.0, cycles=2.0) + 0.1
    tone = np.clip(tone + 0.6 * shade, 0, 1.2)
    linear = ramp(tone, [(0, light), (0.55, middle), (1.2, dark)])
    pores = view.fractal(rng, beta=0.7, cycles=70.0, stretch=7.0)
    linear *= (1 - 0.5 * smoothstep(1.5, 2.4, pores) * (0.3 + late))[..., None]
    sheen = view.fractal(rng, beta=2.4, cycles=1.0, stretch=0.5)
    linear *= (1 + 0.1 * sheen)[..., None]
    details = {0: ("straight grain",), 1: ("one knot",), 2: ("two knots",)}[knots]
    return Painting(
        linear,
        (f"{word} wood grain", f"a plank of {word} wood", f"planed {word} wood with growth rings"),
        details=details,
        attributes={"colour": name, "knots": str(knots)},
        exposure=1.3,
    )
