"""Skies: gradient, sun or moon, stars, a plane of thin cloud, and lit cumulus."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes.noise import Field, Picture, smoothstep, warp
from hirescli.training.scenes.palette import LIGHTS, Light, mix
from hirescli.training.scenes.space import star_field
from hirescli.training.scenes.view import Painting, View, window


def gradient(light: Light, height: Field) -> Picture:
    """Colour a clear sky by `height` (0 at the horizon, 1 at the top of a wide picture)."""
    h = np.maximum(height, 0)
    low = np.exp(-h * np.float32(5.5))
    high = smoothstep(0.1, 1.1, h)
    return mix(mix(light.middle, light.zenith, high), light.horizon, low)


def add_sun(
    linear: Picture, light: Light, x: Field, y: Field, at: tuple[float, float], *, radius: float
) -> None:
    """Add the disk and its glow in place; `x`, `y`, `at`, `radius` in composition units."""
    if not light.sun.any():
        return
    distance = np.sqrt((x - np.float32(at[0])) ** 2 + (y - np.float32(at[1])) ** 2)
    gain = 0.25 if light.time == "night" else 1.0
    glow = np.exp(-distance * 5) * np.float32(0.09) + np.exp(-distance * 18) * np.float32(0.16)
    linear += light.sun * (glow * np.float32(gain))[..., None]
    if light.disk:
        disk = smoothstep(radius * 1.06, radius * 0.94, distance)
        linear += light.sun * (disk * np.float32(light.disk))[..., None]


def cumulus(
    rng: np.random.Generator, view: View, light: Light, sun: tuple[float, float], cover: float
) -> tuple[Field, Picture]:
    """Make heaped clouds: opacity (px, px) in 0..1 and their lit colour.

    The density is walked towards the sun in a few steps; what lies in between shades it.
    """
    base = view.fractal(rng, beta=1.75, cycles=2.0, stretch=1.5)
    puff = np.abs(view.fractal(rng, beta=1.6, cycles=6.0, stretch=1.2))
    field = base - 0.32 * puff + np.float32(cover)
    density = np.clip(field, 0, None)
    x, y = view.grid()
    to_x, to_y = np.float32(sun[0]) - x, np.float32(sun[1]) - y
    length = np.sqrt(to_x**2 + to_y**2) + np.float32(0.25)
    dx, dy = to_x / length, to_y / length
    shade = np.zeros_like(density)
    for step in (0.006, 0.018, 0.042):
        shade += np.clip(warp(field, dx * np.float32(step * 1.0), dy * np.float32(step)), 0, None)
    lit = np.exp(-shade * np.float32(0.42)) * 0.85 + 0.35 * np.exp(-shade * np.float32(0.1))
    alpha = 1 - np.exp(-density * np.float32(3.2))
    # Thin rims in front of the sun glow.
    rim = np.exp(-density * 2.2) * np.exp(-length * 3.5)
    colour = light.ambient * 0.75 + light.direct * (lit * 0.75 + rim * 0.8)[..., None]
    return alpha.astype(np.float32), colour.astype(np.float32)


COVERS = {"a few clouds": -0.75, "scattered clouds": -0.15, "towering clouds": 0.45}


def sky(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint a sky of lit clouds."""
    view = window(rng, zoom, px)
    time = str(rng.choice(["dawn", "day", "day", "sunset", "sunset", "dusk", "night", "storm"]))
    light = LIGHTS[time]
    word = "towering clouds" if time == "storm" else str(rng.choice(list(COVERS)))
    cover = COVERS[word] + (0.6 if time == "storm" else 0.0) + (0.2 if zoom != "wide" else 0)
    x, y = view.grid()
    linear = np.broadcast_to(gradient(light, 1.05 - y + 0 * x), (px, px, 3)).copy()
    low = light.elevation[0] < 0.2
    sun = (
        float(rng.uniform(0.15, 0.85)),
        float(rng.uniform(0.7, 0.85) if low else rng.uniform(0.12, 0.3)),
    )
    if light.stars:
        stars = np.zeros_like(linear)
        star_field(stars, rng, view, light.stars)
        linear += stars * np.minimum(1, (1.1 - y))[..., None]
    add_sun(linear, light, x, y, sun, radius=0.035)
    alpha, colour = cumulus(rng, view, light, sun, cover)
    linear = mix(linear, colour, alpha)
    details = [word]
    if light.sun.any() and light.disk:
        orb = "moon" if time == "night" else "sun"
        side = "left" if sun[0] < 0.42 else "right" if sun[0] > 0.58 else "centre"
        hidden = alpha[int(sun[1] * px) % px, int(sun[0] * px) % px] > 0.5
        if not hidden and zoom == "wide":
            details.append(f"{orb} in the centre" if side == "centre" else f"{orb} on the {side}")
    return Painting(
        linear,
        ("a sky with clouds", "clouds in the sky", "a cloudy sky"),
        times=light.words,
        details=tuple(details),
        attributes={"time": time, "clouds": word},
        exposure=1.1,
    )
