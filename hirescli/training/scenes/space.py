"""Nebulae, galaxies and the stars around them."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes.noise import Field, Picture, smoothstep, warp
from hirescli.training.scenes.palette import mix, rgb
from hirescli.training.scenes.view import Painting, View, window

STAR_COLOURS = np.array(
    [[0.65, 0.8, 1.0], [0.9, 0.95, 1.0], [1.0, 0.95, 0.8], [1.0, 0.75, 0.5]], np.float32
)
NEBULAE: dict[str, tuple[str, str, str]] = {  # deep, body, bright
    "blue": ("#0a1a5c", "#2a6ae0", "#a8d8ff"),
    "red": ("#4a0614", "#d8283a", "#ffb498"),
    "purple": ("#220a58", "#8c3ce0", "#f0b0ff"),
    "green": ("#04382c", "#1fae74", "#c8ffd0"),
    "golden": ("#4a2204", "#e08a1c", "#fff0b8"),
    "pink": ("#4a0a3c", "#f0509c", "#ffd4e4"),
    "turquoise": ("#04323e", "#16b0b8", "#c4fff4"),
}
GALAXIES: dict[str, tuple[str, str]] = {  # arms, core
    "blue": ("#5a90ff", "#ffe8c0"),
    "purple": ("#a06af0", "#ffe0d0"),
    "golden": ("#f0a850", "#fff4d0"),
    "pink": ("#f070a8", "#fff0d8"),
}


def add_stars(
    linear: Picture, rng: np.random.Generator, *, count: float, size: float, gain: float
) -> None:
    """Add round stars in place; `count` per picture, `size` in picture widths at 1/512."""
    height, px = linear.shape[:2]
    number = int(rng.poisson(count))
    if number == 0:
        return
    x, y = rng.uniform(0, px, (2, number)).astype(np.float32)
    light = (rng.pareto(1.6, number).astype(np.float32) + 0.15).clip(0, 14) * gain
    tint = STAR_COLOURS[rng.integers(0, 4, number)]
    sigma = np.float32(max(size * px / 512, 0.75))
    reach = int(np.ceil(3 * sigma))
    offset = np.arange(-reach, reach + 1)
    columns = x.astype(np.int64)[:, None] + offset
    rows = y.astype(np.int64)[:, None] + offset
    gx = np.exp(-((columns + 0.5 - x[:, None]) ** 2) / (2 * sigma**2))
    gy = np.exp(-((rows + 0.5 - y[:, None]) ** 2) / (2 * sigma**2))
    stamp = gy[:, :, None] * gx[:, None, :] * light[:, None, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < px))[
        :, None
    ]
    flat = (rows[:, :, None] * px + columns[:, None, :])[inside]
    owner = np.broadcast_to(np.arange(number)[:, None, None], stamp.shape)[inside]
    values = stamp[inside]
    plane = linear.reshape(-1, 3)
    for channel in range(3):
        weights = values * tint[owner, channel]
        plane[:, channel] += np.bincount(flat, weights, height * px).astype(np.float32)


def add_spiked_star(
    linear: Picture, x: float, y: float, *, size: float, gain: float, tint: Picture | Field
) -> None:
    """Add one bright star in place: core, halo and four spikes; places in 0..1."""
    px = linear.shape[0]
    axis = (np.arange(px, dtype=np.float32) + 0.5) / px
    dx, dy = np.abs(axis - x)[None, :], np.abs(axis - y)[:, None]
    thin = np.float32(max(0.0016 * size, 0.55 / px))
    spike = np.exp(-dx / np.float32(0.035 * size)) * np.exp(-((dy / thin) ** 2))
    spike += np.exp(-dy / np.float32(0.035 * size)) * np.exp(-((dx / thin) ** 2))
    r2 = dx**2 + dy**2
    core = np.exp(-r2 / np.float32((0.0042 * size) ** 2)) * 3
    halo = 0.10 / (1 + r2 / np.float32((0.012 * size) ** 2)) ** 1.5
    linear += ((spike * 1.2 + core + halo) * np.float32(gain))[..., None] * tint


def star_field(linear: Picture, rng: np.random.Generator, view: View, richness: float) -> None:
    """Add faint and bright stars; a closer view has fewer and larger ones."""
    k = view.factor
    add_stars(linear, rng, count=520 * richness / k**0.8, size=0.75 * k**0.25, gain=0.16)
    add_stars(linear, rng, count=50 * richness / k**0.5, size=1.2 * k**0.3, gain=0.5)


def nebula(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint glowing gas of one or two colours, dark dust in front, and spiked stars."""
    view = window(rng, zoom, px)
    names = list(NEBULAE)
    colour = str(rng.choice(names))
    second = str(rng.choice([n for n in names if n != colour])) if rng.random() < 0.4 else ""
    deep, body, bright = (rgb(code) for code in NEBULAE[colour])
    k = view.factor**0.5
    sweep_x = view.fractal(rng, beta=2.8, cycles=1.0) * np.float32(0.035)
    sweep_y = view.fractal(rng, beta=2.8, cycles=1.0) * np.float32(0.035)
    gas = warp(view.fractal(rng, beta=2.1, cycles=0.9), sweep_x, sweep_y)
    ridge = 1 - np.abs(warp(view.fractal(rng, beta=1.9, cycles=1.8), sweep_y, sweep_x))
    density = smoothstep(-1.5, 2.2, gas + 0.45 * ridge)
    linear = deep * (0.10 + 1.3 * density[..., None])
    linear += body * (density**2.2)[..., None] * 1.5
    glow = (density**4 * (0.4 + np.maximum(ridge, 0) ** 2)).astype(np.float32)
    linear += bright * glow[..., None] * 1.5
    if second:
        other = rgb(NEBULAE[second][1])
        where = smoothstep(-0.2, 1.4, view.fractal(rng, beta=2.6, cycles=1.0))
        tint = other * (density**2)[..., None] * 1.6 + rgb(NEBULAE[second][2]) * glow[..., None]
        linear = mix(linear, tint + linear * 0.1, where * 0.9)
    dust = warp(view.fractal(rng, beta=2.0, cycles=1.6), sweep_x, sweep_y)
    shade = smoothstep(0.3, 2.4, dust)
    linear *= np.exp(-shade[..., None] * np.array([1.6, 2.2, 2.7], np.float32))
    star_field(linear, rng, view, 1.0)
    for _ in range(int(rng.integers(1, 5)) if zoom == "wide" else int(rng.integers(0, 3))):
        add_spiked_star(
            linear,
            rng.uniform(0.05, 0.95),
            rng.uniform(0.05, 0.95),
            size=float(rng.uniform(0.7, 1.7) * k**0.6),
            gain=float(rng.uniform(0.8, 2)),
            tint=STAR_COLOURS[rng.integers(0, 3)],
        )
    words = f"{colour} and {second}" if second else colour
    return Painting(
        linear,
        (
            f"a {words} nebula with stars",
            f"{words} nebula in space",
            f"glowing {words} gas and dust, a nebula",
        ),
        attributes={"colour": colour, "second": second},
        exposure=1.15,
    )


def galaxy(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint a spiral galaxy: logarithmic arms, dust lanes, pink star nurseries, a warm core."""
    view = window(rng, zoom, px, x=(0.35, 0.65), y=(0.35, 0.65))
    colour = str(rng.choice(list(GALAXIES)))
    arms = int(rng.choice([2, 2, 3, 4]))
    x, y = view.grid()
    angle = rng.uniform(0, np.pi)
    tilt = rng.uniform(0.35, 1.0)
    size = rng.uniform(0.30, 0.42)
    cx, cy = (0.5, 0.5) if zoom != "wide" else rng.uniform(0.44, 0.56, 2)
    dx, dy = x - np.float32(cx), y - np.float32(cy)
    u = (dx * np.cos(angle) + dy * np.sin(angle)).astype(np.float32) / np.float32(size)
    v = (dy * np.cos(angle) - dx * np.sin(angle)).astype(np.float32) / np.float32(size * tilt)
    radius = np.sqrt(u * u + v * v) + np.float32(1e-3)
    turns = rng.choice([-1, 1]) * rng.uniform(2.4, 3.6)
    clumps = view.fractal(rng, beta=1.5, cycles=8.0)
    soft = view.fractal(rng, beta=2.0, cycles=3.0)
    k = np.float32(1 / view.factor**0.4)
    phase = arms * (np.arctan2(v, u) - turns * np.log(radius)) + 0.55 * soft * k
    wave = np.cos(phase)
    disk = np.exp(-radius * 2.6) * smoothstep(1.45, 0.7, radius)
    arm = np.exp((wave - 1) * 2.2) * smoothstep(0.02, 0.25, radius)
    tint, core = (rgb(code) for code in GALAXIES[colour])
    light = disk * (0.35 + 3.4 * arm * np.clip(1 + 0.55 * clumps, 0.1, 3))
    linear = tint * light[..., None] * 1.6
    bulge = np.exp(-((radius / 0.17) ** 1.1) * 2.2)
    linear += core * (bulge * 3.2 + disk * 0.5)[..., None]
    lane = np.exp((np.cos(phase - 0.9) - 1) * 5) * smoothstep(0.1, 0.3, radius)
    grit = smoothstep(-0.6, 1.2, clumps + 0.6 * soft)
    dust = lane * grit * np.exp(-radius * 0.8)
    linear *= np.exp(-dust[..., None] * np.array([1.3, 1.9, 2.5], np.float32))
    spots = smoothstep(1.5, 2.6, view.fractal(rng, beta=1.2, cycles=26.0))
    linear += rgb("#ff5a8c") * (spots * arm * smoothstep(1.2, 0.3, radius))[..., None] * 1.2
    haze = np.exp(-radius * 1.9) * np.float32(0.06)
    linear += tint * haze[..., None] + rgb("#060814") * np.float32(0.5)
    star_field(linear, rng, view, 0.8 if zoom == "wide" else 2.0)
    if zoom == "wide" and rng.random() < 0.5:
        add_spiked_star(
            linear,
            rng.uniform(0.05, 0.95),
            rng.choice([0.08, 0.92]),
            size=1.0,
            gain=1.2,
            tint=STAR_COLOURS[rng.integers(0, 3)],
        )
    pose = "seen from above" if tilt > 0.72 else "tilted" if tilt < 0.55 else ""
    count = {2: "two arms", 3: "three arms", 4: "four arms"}[arms]
    return Painting(
        linear,
        (
            f"a {colour} spiral galaxy",
            f"{colour} galaxy with spiral arms",
            f"a spiral galaxy of {colour} stars",
        ),
        details=tuple(word for word in (pose, count) if word),
        attributes={"colour": colour, "arms": str(arms), "pose": pose or "slanted"},
        exposure=1.2,
    )
