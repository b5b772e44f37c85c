"""Pine forests: rows of trees behind each other, paler with distance, mist in between."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes.noise import Field, Picture, sample, smoothstep, tile
from hirescli.training.scenes.palette import LIGHTS, Light, mix, rgb
from hirescli.training.scenes.view import Painting, View, window
from hirescli.training.scenes.water import side_of, sky_above

LAYERS = 6
LEAVES = {
    "green": ("#16301c", "#4c7a3a"),
    "golden": ("#4a2c0c", "#d08a28"),
    "snowy": ("#34485a", "#f0f6ff"),
}


def _tree(
    cover: Field, shine: Field, view: View, at: tuple[float, float], tall: float, seed: float
) -> None:
    """Draw one pine in place: `cover` gets its opacity, `shine` its light from above.

    `at` is the foot, `tall` the height, in composition units.
    """
    scale = view.factor * view.px
    wide = tall * 0.21
    left, right = ((at[0] + s * wide - view.x0) * scale for s in (-1.1, 1.1))
    top, foot = (at[1] - tall - view.y0) * scale, (at[1] - view.y0) * scale
    c0, c1 = max(int(left), 0), min(int(right) + 2, view.px)
    r0, r1 = max(int(top), 0), min(int(foot) + 1, view.px)
    if c0 >= c1 or r0 >= r1:
        return
    x = ((np.arange(c0, c1, dtype=np.float32) + 0.5) / scale + view.x0 - at[0])[None, :]
    y = ((np.arange(r0, r1, dtype=np.float32) + 0.5) / scale + view.y0 - at[1] + tall)[:, None]
    t = np.clip(y / np.float32(tall), 0, 1)  # 0 at the top, 1 at the foot
    tiers = np.float32((9 + 5 * seed) * view.factor**0.4)
    twig = sample(tile(6, 1.2, 8.0, 120.0), x * (1.1 / tall) * 0.5 + seed, t * 0.5 + seed * 3)
    if view.factor > 1:
        needles = sample(tile(7, 1.2, 8.0, 120.0), x * (4.0 / tall) + seed, t * 1.3 + seed)
        twig = 0.6 * twig + 0.3 * needles
    droop = t - np.abs(x) * np.float32(0.35 / tall)
    tier = np.mod(droop * tiers + 0.25 * twig, 1.0)
    half = np.float32(wide) * (0.04 + 0.96 * t**0.9) * (0.52 + 0.48 * tier) * (1 + 0.16 * twig)
    soft = np.float32(0.9 / scale) + np.float32(0.012 * tall) * 0.25
    alpha = smoothstep(0, 1, (half - np.abs(x)) / (2 * soft) + 0.5)
    light = (1 - tier) * 0.75 + 0.22 * twig - x / np.float32(wide) * np.float32(0.2)
    old = cover[r0:r1, c0:c1]
    shine[r0:r1, c0:c1] = shine[r0:r1, c0:c1] * (1 - alpha) + light * alpha
    cover[r0:r1, c0:c1] = old + (1 - old) * alpha


def _row(rng: np.random.Generator, view: View, level: float, tall: float) -> tuple[Field, Field]:
    """Draw one row of trees on a wavy slope; gives opacity and light."""
    cover = np.zeros((view.px, view.px), np.float32)
    shine = np.zeros_like(cover)
    x, y = view.grid()
    phase = rng.uniform(0, 6.28, 3)
    swing = np.array([0.035, 0.02, 0.008])

    def slope(at: Field | float) -> Field:
        waves = [
            s * np.sin(f * at + p) for s, f, p in zip(swing, (3.1, 7.3, 17.0), phase, strict=True)
        ]
        return np.asarray(level + sum(waves), np.float32)

    step = tall * 0.17
    for place in np.arange(-0.1, 1.1, step):
        foot = place + rng.uniform(-0.5, 0.5) * step
        size, seed = tall * rng.uniform(0.6, 1.15), float(rng.uniform(0, 1))
        _tree(cover, shine, view, (foot, float(slope(foot)) + 0.1 * tall), size, seed)
    ground = smoothstep(0, 1, (y - slope(x)) * np.float32(view.px * view.factor) + 0.5)
    shine *= np.maximum(1 - ground, cover)
    return np.maximum(cover, ground), shine


def forest(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint a pine forest on slopes in mist."""
    time = str(rng.choice(["dawn", "day", "sunset", "sunset", "dusk", "night"]))
    light = LIGHTS[time]
    word = str(rng.choice(list(LEAVES)))
    dark, bright = (rgb(code) for code in LEAVES[word])
    horizon = float(rng.uniform(0.42, 0.52))
    sun_x = float(rng.choice([0.22, 0.5, 0.78]))
    shown = bool(light.disk) and rng.random() < 0.75
    sun = (sun_x, float(rng.uniform(0.14, 0.24))) if shown else (sun_x * 3 - 1, 0.2)
    view = window(rng, zoom, px, x=(0.15, 0.85), y=(0.45, 0.85))
    gx, gy = view.grid()
    x, y = (np.ascontiguousarray(a) for a in np.broadcast_arrays(gx, gy))
    linear = sky_above(rng, view, light, sun, horizon + 0.1, x, y, float(rng.choice([0, 0.4])))
    mist = light.haze * np.float32(0.9) + light.horizon * np.float32(0.12)
    thick = float(rng.choice([0.5, 1.0]))
    for index in range(LAYERS):
        near = index / (LAYERS - 1)
        level, tall = horizon + 0.55 * near**1.3, 0.05 + 0.42 * near**1.6
        cover, shine = _row(rng, view, level, tall)
        linear = mix(linear, _layer(light, dark, bright, shine, mist, 1 - near), cover)
        if index < LAYERS - 1:
            low = np.exp(
                -(((y - np.float32(level + 0.05)) / np.float32(0.045 + 0.05 * near)) ** 2)
            )
            linear = mix(linear, mist, low * np.float32(0.42 * thick * (1 - 0.6 * near)))
    details: list[str] = []
    if shown:
        details.append(side_of(sun_x, "moon" if time == "night" else "sun"))
    if thick > 0.8:
        details.append("mist between the trees")
    return Painting(
        linear,
        (f"{word} pine forest", f"a forest of {word} pine trees", f"{word} pines, a forest"),
        times=light.words,
        details=tuple(details),
        attributes={"time": time, "colour": word, "mist": "yes" if thick > 0.8 else "no"},
        exposure=1.15,
    )


def _layer(
    light: Light,
    dark: Picture | Field,
    bright: Picture | Field,
    shine: Field,
    mist: Field,
    far: float,
) -> Picture:
    """Colour a row of trees: lit needles, paler with distance."""
    needles = mix(dark, bright, smoothstep(0.1, 0.95, shine))
    glow = light.ambient * 0.75 + light.direct * (0.12 + 0.45 * np.clip(shine, 0, 1))[..., None]
    lit = needles * glow
    return (lit * (1 - 0.72 * far) + mist * (0.72 * far)).astype(np.float32)
