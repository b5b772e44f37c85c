"""The open sea: waves in perspective, the sky's reflection, and the glitter under the sun."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes.clouds import add_sun, gradient
from hirescli.training.scenes.noise import Field, Picture, sample, smoothstep, tile
from hirescli.training.scenes.palette import LIGHTS, Light, mix, rgb
from hirescli.training.scenes.space import star_field
from hirescli.training.scenes.view import Painting, View, window

DEEP = {
    "dawn": "#2a4a6c",
    "day": "#0c4a86",
    "sunset": "#3a2450",
    "dusk": "#1a2050",
    "night": "#061428",
    "storm": "#2c3c42",
}


def wave_slopes(
    rng: np.random.Generator, across: Field, away: Field, footprint: Field, rough: float
) -> tuple[Field, Field]:
    """Sum wave bands at ground positions; each fades where its waves fall below a pixel."""
    sx = np.zeros_like(across)
    sy = np.zeros_like(across)
    for octave in range(7):
        period = np.float32(6.0 / 2.1**octave)  # of a whole tile, which holds about 12 waves
        fade = np.clip(1.4 - footprint * 45 / period, 0, 1)
        if not fade.any():
            break
        ox, oy = rng.uniform(0, 1, 2).astype(np.float32)
        band = tile(int(rng.integers(0, 12)), 1.6, 9.0, 40.0)
        weight = np.float32(rough * 0.8**octave)
        u, v = across / (period * 1.6) + ox, away / period + oy
        sy += sample(band, u, v) * fade * weight
        sx += sample(band, u + np.float32(0.37), v + np.float32(0.61)) * fade * weight * 0.6
    return sx, sy


def shade_sea(
    rng: np.random.Generator,
    light: Light,
    sun: tuple[float, float],
    horizon: float,
    x: Field,
    y: Field,
    px_step: float,
    rough: float,
) -> Picture:
    """Colour the water below the horizon; `x`, `y` full grids in composition units."""
    below = np.maximum(y - np.float32(horizon), np.float32(0.25 * px_step))
    away = np.float32(0.5) / below
    across = (x - np.float32(0.5)) * away * 1.2
    footprint = away * away * np.float32(px_step * 2)
    sx, sy = wave_slopes(rng, across, away, footprint, rough)
    grazing = below / (below + np.float32(0.35))
    tilt = np.clip(grazing + 0.16 * sy * np.sqrt(grazing), 0.0, 1.0)
    fresnel = 0.03 + 0.97 * (1 - tilt) ** 4
    up = below * 1.1 + 0.13 * sy * np.sqrt(below)
    linear = mix(rgb(DEEP[light.time]), gradient(light, np.abs(up) + 0.02), fresnel * 0.92)
    scatter = smoothstep(0.4, 2.5, sy) * grazing
    linear += (light.ambient * rgb(DEEP[light.time]))[None, None] * scatter[..., None] * 2.0
    if light.sun.any():
        # A facet flashes when its slope mirrors the sun into the eye.
        path = (x - np.float32(sun[0])) / (0.035 + 0.35 * below)
        spread = 0.5 + 0.55 * rough
        off = path + sx * np.float32(0.9)
        facet = np.exp(-((off / spread) ** 2)) * np.exp(-(((sy - 0.35) / 0.65) ** 2))
        base = np.exp(-((path / spread) ** 2) * 0.7) * np.float32(0.22)
        strength = 0.35 if light.time == "night" else 0.4
        strength *= 0.6 if not light.disk else 1.0
        linear += light.sun * ((facet + base) * np.float32(strength))[..., None]
    if rough > 1.0:
        # Foam in streaks on the steep faces only, not in sheets.
        foam = smoothstep(2.3, 4.2, sy + 0.9 * sx) * smoothstep(0.0, 0.12, below)
        linear = mix(linear, light.ambient * 1.3 + light.direct * 0.5, foam * 0.85)
    return linear


def sky_above(
    rng: np.random.Generator,
    view: View,
    light: Light,
    sun: tuple[float, float],
    horizon: float,
    x: Field,
    y: Field,
    cloud: float,
) -> Picture:
    """Colour the sky of a landscape: gradient, stars, sun, and cloud streaks in perspective."""
    height = (np.float32(horizon) - y) / np.float32(max(horizon, 0.3))
    linear = gradient(light, height)
    if light.stars:
        stars = np.zeros_like(linear)
        star_field(stars, rng, view, light.stars * 0.8)
        linear += stars * smoothstep(0.0, 0.5, height)[..., None]
    add_sun(linear, light, x, y, sun, radius=0.034)
    if cloud > 0:
        far = 1 / (np.maximum(height, 0) + np.float32(0.16))
        u, v = (x - 0.5) * far * np.float32(0.35), far * np.float32(0.45)
        field = np.zeros_like(height)
        ox, oy = rng.uniform(0, 1, 2)
        for octave in range(4 + (view.factor > 1) * 2):
            s = np.float32(0.25 * 2.3**octave)
            field += sample(tile(octave, 1.4, 4.0, 60.0), u * s + ox, v * s + oy) * np.float32(
                0.62**octave
            )
        alpha = smoothstep(1.1 - 1.9 * cloud, 2.6 - 1.2 * cloud, field)
        alpha *= smoothstep(0.0, 0.12, height) * np.float32(0.9)
        near = np.exp(-np.sqrt((x - sun[0]) ** 2 + (y - sun[1]) ** 2) * 3)
        colour = light.ambient * 0.8 + light.direct * (0.45 + 0.6 * near)[..., None]
        colour = colour * (1 - 0.28 * smoothstep(1.0, 3.0, field))[..., None]
        linear = mix(linear, colour, alpha)
    return linear


def side_of(x: float, orb: str) -> str:
    """Say where the sun or moon stands."""
    return (
        f"{orb} on the left"
        if x < 0.4
        else f"{orb} on the right"
        if x > 0.6
        else (f"{orb} in the middle")
    )


def sea(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint the open sea."""
    horizon = float(rng.uniform(0.38, 0.6))
    time = str(rng.choice(["dawn", "day", "sunset", "sunset", "dusk", "night", "storm"]))
    light = LIGHTS[time]
    sun_x = float(rng.choice([0.22, 0.5, 0.78]) + rng.uniform(-0.07, 0.07))
    rise = {"day": 0.34, "night": 0.25}.get(time, float(rng.uniform(0.05, 0.2)))
    sun = (sun_x, horizon - min(rise, horizon - 0.07))
    rough = {"storm": 1.7}.get(time, float(rng.choice([0.5, 0.9])))
    view = window(
        rng,
        zoom,
        px,
        x=(sun_x - 0.1, sun_x + 0.1) if time != "day" else (0.2, 0.8),
        y=(min(horizon + 0.05, 0.8), 0.88),
    )
    gx, gy = view.grid()
    x, y = (np.ascontiguousarray(a) for a in np.broadcast_arrays(gx, gy))
    step = 1 / (px * view.factor)
    edge = int(np.clip((horizon - view.y0) * view.factor * px, 0, px))
    linear = np.empty((px, px, 3), np.float32)
    if edge:
        cloud = 0.95 if time == "storm" else float(rng.choice([0.0, 0.3, 0.55]))
        linear[:] = sky_above(rng, view, light, sun, horizon, x, y, cloud)
    if edge < px:
        water = shade_sea(rng, light, sun, horizon, x[edge:], y[edge:], step, rough)
        mist = np.exp(-(y[edge:] - np.float32(horizon)) * 28) * np.float32(0.75)
        linear[edge:] = mix(water, light.horizon * 0.92, mist)
    details = []
    if light.disk and light.sun.any():
        details.append(side_of(sun_x, "moon" if time == "night" else "sun"))
    details.append("white foam" if rough > 1 else "small waves" if rough > 0.7 else "calm water")
    return Painting(
        linear,
        ("the sea", "waves on the open sea", "a view over the sea"),
        times=light.words,
        details=tuple(details),
        attributes={"time": time, "waves": details[-1]},
        exposure=1.05,
    )
