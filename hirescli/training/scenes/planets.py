"""Planets: lit spheres with clouds, bands, craters or lava, an atmosphere, perhaps a ring."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes.noise import Field, Picture, sample, smoothstep, tile
from hirescli.training.scenes.palette import mix, ramp, rgb
from hirescli.training.scenes.space import star_field
from hirescli.training.scenes.view import Painting, View, window

BANDS = {
    "golden": [
        (-2.0, "#6e4420"),
        (-0.7, "#c08a4c"),
        (0.2, "#e8c88c"),
        (1.0, "#fbeccc"),
        (2.0, "#a8683a"),
    ],
    "blue": [
        (-2.0, "#102c78"),
        (-0.7, "#2a62c0"),
        (0.2, "#6aa8ec"),
        (1.0, "#c4e4fc"),
        (2.0, "#1c4a9c"),
    ],
    "purple": [
        (-2.0, "#2c145c"),
        (-0.7, "#6a3cac"),
        (0.2, "#a880dc"),
        (1.0, "#e4d0f8"),
        (2.0, "#4c2488"),
    ],
    "green": [
        (-2.0, "#0c3c30"),
        (-0.7, "#2a8060"),
        (0.2, "#74c494"),
        (1.0, "#d4f4d8"),
        (2.0, "#1a5c48"),
    ],
}
KINDS: dict[str, tuple[str, tuple[str, str, str]]] = {  # atmosphere, subject phrases
    "gas": ("", ("a {c} planet with bands", "{c} gas giant planet", "a striped {c} planet")),
    "ocean": (
        "#5aa8ff",
        (
            "a blue planet with oceans and clouds",
            "an earth-like planet",
            "a planet with blue oceans, green land and white clouds",
        ),
    ),
    "lava": (
        "#ff6a20",
        (
            "a dark planet with glowing lava",
            "a lava planet",
            "a black planet with orange lava cracks",
        ),
    ),
    "ice": ("#b8e0ff", ("a white ice planet", "an icy planet", "a frozen white planet")),
    "rock": ("#e08a5c", ("a red rocky planet", "a red desert planet", "a dusty red planet")),
    "moon": (
        "",
        ("a grey moon with craters", "the grey moon, a small planet", "a grey rocky moon planet"),
    ),
}


def _noise(
    rng: np.random.Generator, view: View, u: Field, v: Field, *, scale: float, rough: float
) -> Field:
    """Sum octaves of tiles at sphere coordinates down to the pixel; deviation about 1."""
    total = np.zeros(np.broadcast_shapes(u.shape, v.shape), np.float32)
    octaves = 5 + int(np.log2(view.factor))
    weight = 1.0
    for octave in range(octaves):
        ox, oy = rng.uniform(0, 1, 2).astype(np.float32)
        s = np.float32(scale * 2.0**octave)
        total += sample(tile(octave % 8, 2.4, 3.0, 8.0), u * s + ox, v * s + oy) * np.float32(
            weight
        )
        weight *= rough
    return total * np.float32(np.sqrt(1 - rough**2))


def _surface(
    rng: np.random.Generator, view: View, kind: str, colour: str, u: Field, v: Field, lat: Field
) -> tuple[Picture, Picture | None, Field]:
    """Give reflectance, glow of its own (or none) and relief at sphere coordinates."""
    base = _noise(rng, view, u, v, scale=0.16, rough=0.58)
    fine = _noise(rng, view, u, v, scale=0.9, rough=0.72)
    if kind == "gas":
        swirl = lat * np.float32(rng.uniform(7, 12)) + 0.45 * base
        streak = _noise(rng, view, u * 0.12, lat * 0.9 + 0.02 * base, scale=1.4, rough=0.7)
        return ramp(1.3 * np.sin(swirl) + 0.6 * streak, BANDS[colour]), None, base * 0
    if kind == "ocean":
        land = ramp(fine, [(-2, "#1c4a1e"), (0, "#4c7a34"), (1, "#a8945c"), (2, "#d8c89c")])
        sea = mix(rgb("#06245c"), rgb("#1a6aa8"), smoothstep(-0.9, 0.1, base))
        ground = mix(sea, land, smoothstep(0.08, 0.13, base + 0.1 * fine))
        cloud = _noise(rng, view, u * 0.7 + 0.02 * base, v + 0.03 * fine, scale=0.35, rough=0.66)
        return mix(ground, rgb("#ffffff"), smoothstep(0.25, 1.5, cloud) * 0.9), None, cloud * 0.3
    if kind == "lava":
        crack = np.exp(-np.abs(base + 0.12 * fine) * 11) + 0.4 * np.exp(-np.abs(fine) * 9)
        stone = mix(rgb("#14100f"), rgb("#3c302c"), smoothstep(-1.5, 1.5, fine))
        glow = ramp(
            np.clip(crack, 0, 1.2),
            [(0, "#000000"), (0.35, "#6a1002"), (0.7, "#ff5a10"), (1.2, "#ffe890")],
        )
        return stone, glow * 1.6, fine
    stops = {
        "ice": [(-2.0, "#5a9cc8"), (-0.6, "#b4d8ec"), (0.4, "#eef6fb"), (2.0, "#ffffff")],
        "rock": [(-2.0, "#4a1a10"), (-0.6, "#9c4424"), (0.4, "#cc7444"), (2.0, "#eeb888")],
        "moon": [(-2.0, "#3a3a3e"), (-0.6, "#77767a"), (0.4, "#a4a29e"), (2.0, "#d8d6d0")],
    }[kind]
    relief = 0.5 * fine + 0.3 * base
    if kind == "moon":
        spots = _noise(rng, view, u, v, scale=0.5, rough=0.3)
        relief = (
            relief
            - 2.2 * smoothstep(0.8, 1.1, spots)
            + 1.2 * np.exp(-(((spots - 0.8) / 0.1) ** 2))
        )
    return ramp(base + 0.5 * fine, stops), None, relief


def planet(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint one planet in front of the stars."""
    kind = str(rng.choice(["gas", "gas", "ocean", "ocean", "lava", "ice", "rock", "moon"]))
    colour = (
        str(rng.choice(list(BANDS)))
        if kind == "gas"
        else {"ocean": "blue", "lava": "orange", "ice": "white", "rock": "red", "moon": "grey"}[
            kind
        ]
    )
    radius = float(rng.uniform(0.22, 0.36))
    cx, cy = (float(v) for v in rng.uniform(0.42, 0.58, 2))
    side = float(rng.choice([-1.0, 1.0]))
    sun = np.array([side * 0.8, -rng.uniform(0.1, 0.5), rng.uniform(0.25, 0.6)])
    sx, sy, sz = (np.float32(v) for v in sun / np.linalg.norm(sun))
    ring = bool(rng.random() < (0.5 if kind == "gas" else 0.12))
    reach = radius * 0.75
    view = window(
        rng,
        zoom,
        px,
        x=(min(cx, cx + side * reach), max(cx, cx + side * reach)),
        y=(cy - reach, cy + 0.5 * reach),
    )
    x, y = view.grid()
    dx, dy = (x - np.float32(cx)) / np.float32(radius), (y - np.float32(cy)) / np.float32(radius)
    r2 = dx * dx + dy * dy
    z = np.sqrt(np.clip(1 - r2, 0, 1))
    linear = np.full((px, px, 3), 0.0004, np.float32) * rgb("#8090ff")
    star_field(linear, rng, view, 0.45)
    spin = float(rng.uniform(-0.5, 0.5))
    across, lat = dx * np.cos(spin) + dy * np.sin(spin), dy * np.cos(spin) - dx * np.sin(spin)
    bulge = (1 / (0.35 + z)).astype(np.float32)
    u, v = (across * bulge).astype(np.float32), (lat * bulge).astype(np.float32)
    ground, glow, relief = _surface(rng, view, kind, colour, u, v, lat.astype(np.float32))
    gy, gx = np.gradient(relief)
    bump = np.float32(0.016 * px * radius * view.factor**0.6)
    facing = np.clip(dx * sx + dy * sy + z * sz - bump * (gx * sx + gy * sy) * 0.4, 0, 1)
    facing *= smoothstep(-0.12, 0.15, dx * sx + dy * sy + z * sz)
    body = ground * (facing[..., None] * 2.3 + np.float32(0.012))
    if glow is not None:
        body += glow
    air = KINDS[kind][0] or {
        "golden": "#ffd8a0",
        "purple": "#c8a0ff",
        "green": "#a8ffd0",
        "blue": "#9cc8ff",
    }.get(colour, "")
    edge = 1.2 / (px * view.factor * radius)
    inside = smoothstep(1 + edge, 1 - edge, np.sqrt(r2))
    if air:
        day = smoothstep(-0.35, 0.6, dx * sx + dy * sy + z * sz)
        body = mix(body, rgb(air, 1.1), (1 - z) ** 3 * day * np.float32(0.75))
        halo = np.exp(-np.clip(np.sqrt(r2) - 1, 0, None) * 26) * smoothstep(
            -0.5, 0.8, dx * sx + dy * sy
        )
        linear += rgb(air) * (halo * (1 - inside))[..., None] * 0.9
    linear = mix(linear, body, inside)
    if ring:
        linear = _add_ring(rng, linear, dx, dy, inside, (sx, sy, sz), view, colour)
    details = ("lit from the left" if side < 0 else "lit from the right",)
    phrases = tuple(p.format(c=colour) for p in KINDS[kind][1])
    return Painting(
        linear,
        phrases,
        details=(("with a ring",) if ring else ()) + details,
        attributes={
            "kind": kind,
            "colour": colour,
            "ring": "yes" if ring else "no",
            "light": details[0].split()[-1],
        },
        exposure=1.15,
    )


def _add_ring(
    rng: np.random.Generator,
    linear: Picture,
    dx: Field,
    dy: Field,
    inside: Field,
    sun: tuple[np.float32, np.float32, np.float32],
    view: View,
    colour: str,
) -> Picture:
    """Lay a tilted ring around the planet: its far half behind, with gaps and a shadow."""
    turn, flat = float(rng.uniform(-0.5, 0.5)), float(rng.uniform(0.16, 0.4))
    along = dx * np.cos(turn) + dy * np.sin(turn)
    depth = (dy * np.cos(turn) - dx * np.sin(turn)) / np.float32(flat)
    distance = np.sqrt(along**2 + depth**2).astype(np.float32)
    groove = sample(tile(9, 1.0, 6.0, 120.0), distance * np.float32(0.21), 0 * distance)
    alpha = smoothstep(1.32, 1.36, distance) * smoothstep(2.12, 2.05, distance)
    alpha *= np.clip(0.62 + 0.28 * groove, 0.05, 1)
    alpha *= 1 - 0.9 * np.exp(-(((distance - 1.78) / 0.03) ** 2))
    alpha *= 1 - inside * (depth < 0)
    # The planet's shadow: ring points behind it, seen along the sun's direction.
    toward = dx * sun[0] + dy * sun[1]
    off = np.sqrt(np.clip(dx**2 + dy**2 - toward**2, 0, None))
    shade = 1 - 0.9 * smoothstep(1.05, 0.9, off) * (toward < 0)
    tint = mix(rgb("#d8c4a0"), rgb(BANDS.get(colour, BANDS["golden"])[3][1]), 0.5 + 0 * distance)
    return mix(
        linear,
        tint * (shade * (0.8 + 0.15 * groove))[..., None],
        alpha.astype(np.float32) * np.float32(0.92),
    )
