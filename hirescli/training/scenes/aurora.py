"""Northern lights: hanging curtains of light over mountains or a lake."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes import relief as reliefs
from hirescli.training.scenes.landscapes import Ground, Setting, compose
from hirescli.training.scenes.noise import Field, Picture, sample, smoothstep, tile
from hirescli.training.scenes.palette import LIGHTS, mix, rgb
from hirescli.training.scenes.relief import illuminate
from hirescli.training.scenes.terrain import Camera, free_eye
from hirescli.training.scenes.view import Painting, window

CURTAINS = {
    "green": ("#3cffa0", "#20b0a0"),
    "purple": ("#b060ff", "#ff60c0"),
    "turquoise": ("#30ffe8", "#3080ff"),
    "red": ("#ff5060", "#ff60b0"),
}


def curtains(
    rng: np.random.Generator, x: Field, y: Field, horizon: float, colour: str, factor: float
) -> Picture:
    """Sum three curtains: a folded lower edge, rays above it that fade with height."""
    low, high = (rgb(code) for code in CURTAINS[colour])
    total = np.zeros((*x.shape, 3), np.float32)
    for index in range(3):
        level = np.float32(horizon * (0.78 - 0.25 * index) + rng.uniform(-0.04, 0.04))
        ox = float(rng.uniform(0, 1))
        row = x[:1]
        fold = sample(tile(index, 3.0, 3.0, 6.0), row * np.float32(0.22) + ox, 0 * row + 0.3)
        bend = sample(tile(index, 3.0, 6.0, 12.0), row * np.float32(0.3) + ox, 0 * row + 0.6)
        edge = level + np.float32(0.07) * fold + np.float32(0.016) * bend
        above = (edge - y) / np.float32(0.30)
        rays = np.zeros_like(row)
        for octave in range(4 + int(np.log2(factor))):
            s = np.float32(0.12 * 2.1**octave)
            rays = rays + sample(
                tile(4, 2.0, 4.0, 9.0), (row + 0.03 * fold) * s + ox, 0 * row + 0.1 * octave
            ) * np.float32(0.72**octave)
        strength = np.clip(0.55 + 0.5 * fold + 0.35 * rays, 0.03, 2.2)
        body = np.exp(-np.clip(above, 0, None) * (2.6 - 0.5 * np.tanh(rays)))
        body *= smoothstep(-0.035, 0.03, above) * strength * np.float32(0.75 - 0.15 * index)
        tint = mix(low, high, smoothstep(0.15, 1.0, above))
        total += tint * body[..., None]
    return total


def aurora(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint northern lights over snowy mountains, in half of the pictures over a lake."""
    horizon = float(rng.uniform(0.60, 0.72))
    light = LIGHTS["night"]
    setting = Setting(light, (0.4, 0.5, -0.5), (1.8, 0.2), False)
    colour = str(rng.choice(list(CURTAINS)))
    height = (reliefs.alpine(rng) * np.float32(0.6)).astype(np.float32)
    lake = bool(rng.random() < 0.6) and zoom == "wide"
    water = float(np.quantile(height, 0.4)) if lake else -1.0
    surface = np.maximum(height, np.float32(water))
    x, z, eye = free_eye(rng, surface, above=0.02, wish=0.5)
    camera = Camera(x, z, eye, horizon, 1.1, 0.005, 0.95)
    view = window(rng, zoom, px, y=(0.2, horizon - 0.12))
    relief = illuminate(height, setting.to_sun)
    glow = rgb(CURTAINS[colour][0])

    def colouring(ground: Ground) -> Picture:
        rock = mix(rgb("#2c3038"), rgb("#5c6068"), smoothstep(-1, 1, ground.grain))
        lying = smoothstep(1.6, 0.9, ground.steep + 0.12 * ground.grain)
        return mix(rock, rgb("#f0f6ff"), lying) * (0.8 + glow * 0.9)

    def lights(sky_x: Field, sky_y: Field) -> Picture:
        return curtains(rng, sky_x, sky_y, horizon, colour, view.factor)

    linear, hit = compose(
        rng,
        view,
        relief,
        camera,
        setting,
        colouring,
        water=water,
        rough=0.8,
        fog=0.5,
        cloud=0.0,
        lights=lights,
    )
    wet = bool((hit.ground & (hit.up <= water + 1e-5)).mean() > 0.06)
    return Painting(
        linear,
        (
            f"{colour} aurora over mountains",
            f"{colour} northern lights, aurora",
            f"{colour} aurora in the sky",
        ),
        times=("at night",),
        details=("a lake in front",) if wet else (),
        attributes={"time": "night", "colour": colour, "lake": "yes" if wet else "no"},
        exposure=1.2,
    )
