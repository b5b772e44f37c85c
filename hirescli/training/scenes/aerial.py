"""Islands from above: deep water, shallows, surf, beach, forest, rock."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes.noise import Field, smoothstep
from hirescli.training.scenes.palette import mix, ramp, rgb
from hirescli.training.scenes.view import Painting, window


def islands(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint islands in a warm sea, seen straight from above, sun from one side."""
    view = window(rng, zoom, px)
    kind = str(rng.choice(["one island", "many islands", "a coast"]))
    x, y = view.grid()
    k = np.float32(1 / view.factor**0.5)
    relief = view.fractal(rng, beta=2.15, cycles=2.2) * k
    form: Field = -0.35 + 0 * (x + y)
    if zoom != "wide":
        form = np.zeros((px, px), np.float32) + np.float32(rng.uniform(-0.1, 0.3) * k)
    elif kind == "one island":
        cx, cy = rng.uniform(0.4, 0.6, 2)
        angle = rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        form = 1.5 - 5.2 * np.sqrt(u**2 + (v * rng.uniform(1.1, 1.7)) ** 2)
    elif kind == "a coast":
        angle = rng.uniform(0, 2 * np.pi)
        form = 4.5 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    else:
        form = form - 0.25
    amount = {"one island": 0.5, "many islands": 0.95, "a coast": 0.6}[kind]
    height = (form + relief * np.float32(amount if zoom == "wide" else 0.8)).astype(np.float32)
    scale = np.float32(1.0 if zoom == "wide" else k)
    height = height / scale
    bed = view.fractal(rng, beta=1.8, cycles=5.0)
    depth = height + 0.10 * bed
    linear = ramp(
        depth,
        [
            (-2.2, "#04285c"),
            (-1.2, "#07468a"),
            (-0.7, "#0a76a8"),
            (-0.35, "#16b0bc"),
            (-0.12, "#5fe0d4"),
            (0.0, "#b4f4e4"),
        ],
    )
    ripple = view.fractal(rng, beta=1.0, cycles=45.0)
    linear *= (1 + 0.05 * ripple)[..., None]
    surf = np.exp(-(((height + 0.05 + 0.02 * ripple) / 0.03) ** 2))
    linear = mix(linear, rgb("#ffffff"), surf * smoothstep(-0.8, 0.8, bed) * 0.85)
    land = smoothstep(-0.012, 0.012, height)
    detail = view.fractal(rng, beta=1.5, cycles=14.0)
    up = height + 0.09 * detail
    gy, gx = np.gradient(up + 0.02 * view.fractal(rng, beta=1.1, cycles=50.0))
    slope = np.float32(px / 256 * view.factor**0.5)
    shade = np.clip(1 + (gx * np.float32(0.8) + gy * np.float32(0.6)) * -5 * slope, 0.25, 1.9)
    ground = ramp(
        up,
        [
            (0.0, "#e0cc98"),
            (0.10, "#f2e2b4"),
            (0.16, "#8fa050"),
            (0.24, "#3c7a2c"),
            (0.7, "#1f5a22"),
            (1.3, "#3e6a30"),
            (1.7, "#7a7458"),
            (2.3, "#a09880"),
        ],
    )
    ground *= (1 + 0.25 * detail * smoothstep(0.12, 0.3, up))[..., None] * shade[..., None]
    linear = mix(linear, ground, land)
    return Painting(
        linear,
        (
            "islands from above, turquoise sea",
            "an aerial view of islands and turquoise water",
            "islands with beaches and forest from above",
        ),
        details=(kind,),
        attributes={"layout": kind},
        exposure=1.35,
    )
