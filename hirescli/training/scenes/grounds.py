"""The painters of the landscape families, and the colours of their ground."""

from __future__ import annotations

import numpy as np

from hirescli.training.scenes import relief as reliefs
from hirescli.training.scenes.landscapes import (
    Ground,
    choose_setting,
    compose,
    sun_words,
)
from hirescli.training.scenes.noise import Field, Picture, sample, smoothstep, tile
from hirescli.training.scenes.palette import mix, ramp, rgb
from hirescli.training.scenes.relief import illuminate
from hirescli.training.scenes.terrain import Camera, free_eye
from hirescli.training.scenes.view import Painting, window

ROCKS = (("#6f6a66", "#9a948c"), ("#77685a", "#a3937e"), ("#5c6068", "#8e949c"))


def mountains(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint mountains: rock, snow by height and slope, green valleys, perhaps a lake."""
    horizon = float(rng.uniform(0.45, 0.6))
    setting = choose_setting(
        rng, ("dawn", "day", "day", "sunset", "sunset", "dusk", "night", "storm"), horizon, 1.1
    )
    height = reliefs.alpine(rng)
    cover = str(rng.choice(["snowy", "rocky", "green"]))
    # A mirror needs the picture above it, which a close window does not hold.
    lake = bool(rng.random() < 0.45) and zoom == "wide"
    water = float(np.quantile(height, 0.30)) if lake else -1.0
    surface = np.maximum(height, np.float32(water))
    x, z, eye = free_eye(rng, surface, above=float(rng.uniform(0.012, 0.03)), wish=1.2)
    camera = Camera(x, z, eye, horizon, 1.1, 0.005, 0.95)
    relief = illuminate(height, setting.to_sun)
    view = window(rng, zoom, px, y=(horizon - 0.18, 0.85))
    rock_low, rock_high = (rgb(code) for code in ROCKS[int(rng.integers(0, 3))])
    low, top = (float(np.quantile(height, q)) for q in (0.35, 0.97))
    snow_slopes = (3.4, 2.2) if cover == "snowy" else (2.1, 1.3)
    snow_line = {"snowy": low * 0.5, "rocky": top * 0.97, "green": top * 1.1}[cover]
    grass_line = {"snowy": low * 0.3, "rocky": low, "green": top * 0.93}[cover]

    def colouring(ground: Ground) -> Picture:
        colour = mix(rock_low, rock_high, smoothstep(-1.2, 1.4, ground.grain))
        grass = mix(rgb("#2e4a1e"), rgb("#6f8a3a"), smoothstep(-1.0, 1.2, ground.grain))
        grow = smoothstep(1.7, 1.0, ground.steep + 0.15 * ground.grain)
        grow *= smoothstep(
            grass_line + 0.012, grass_line - 0.012, ground.up + 0.006 * ground.grain
        )
        colour = mix(colour, grass, grow)
        lying = smoothstep(*snow_slopes, ground.steep + 0.15 * ground.grain)
        lying *= smoothstep(snow_line - 0.008, snow_line + 0.02, ground.up + 0.008 * ground.grain)
        return mix(colour, rgb("#f4f8ff"), lying)

    cloud = 0.95 if setting.light.time == "storm" else float(rng.choice([0.0, 0.35, 0.6]))
    fog = float(rng.choice([0.8, 1.5, 2.6]))
    linear, hit = compose(
        rng, view, relief, camera, setting, colouring, water=water, rough=1.0, fog=fog, cloud=cloud
    )
    wet = hit.ground & (hit.up <= water + 1e-5)
    details = list(sun_words(setting, hit, view))
    lake_seen = bool(wet.mean() > 0.06)
    if lake_seen:
        details.append("a lake in front")
    if fog > 1.5:
        details.append("mist")
    return Painting(
        linear,
        (f"{cover} mountains", f"a landscape of {cover} mountains", f"{cover} mountain peaks"),
        times=setting.light.words,
        details=tuple(details),
        attributes={
            "time": setting.light.time,
            "cover": cover,
            "lake": "yes" if lake_seen else "no",
        },
        exposure=1.3,
    )


SANDS = {
    "golden": ("#c48a4a", "#e8bc7c"),
    "red": ("#a8482a", "#d07a4a"),
    "white": ("#cfc4b4", "#f2ece0"),
}


def dunes(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint sand dunes with wind ripples and shaded lee sides."""
    horizon = float(rng.uniform(0.32, 0.5))
    setting = choose_setting(
        rng, ("dawn", "day", "day", "sunset", "sunset", "dusk", "night"), horizon, 1.0
    )
    height = reliefs.dunes(rng)
    x, z, eye = free_eye(rng, height, above=float(rng.uniform(0.02, 0.045)), wish=0.3)
    camera = Camera(x, z, eye, horizon, 1.0, 0.005, 0.95)
    relief = illuminate(height, setting.to_sun)
    view = window(rng, zoom, px, y=(horizon + 0.05, 0.9))
    colour_name = str(rng.choice(list(SANDS)))
    low, high = (rgb(code) for code in SANDS[colour_name])

    def colouring(ground: Ground) -> Picture:
        return mix(low, high, smoothstep(-3.0, 3.0, 0.6 * ground.grain + 30 * ground.up))

    def ripples(ground: Ground) -> tuple[Field, Field]:
        gx, gz = np.zeros_like(ground.x), np.zeros_like(ground.x)
        for period, strength in ((0.0030, 0.13), (0.0007, 0.16)):
            bend = sample(tile(1, 2.2, 4.0, 30.0), ground.x * 6, ground.z * 6)
            phase = (ground.z + 0.35 * ground.x) / period + bend * 0.0022 / period
            fade = np.clip(1.6 - ground.footprint * 4.5 / period, 0, 1)
            wave = np.cos(phase * np.float32(2 * np.pi)) * fade * np.float32(strength)
            gz += wave
            gx += wave * np.float32(0.35)
        return gx, gz

    linear, hit = compose(
        rng,
        view,
        relief,
        camera,
        setting,
        colouring,
        water=-1.0,
        rough=0.02,
        fog=1.1,
        cloud=float(rng.choice([0.0, 0.0, 0.35])),
        ripples=ripples,
    )
    return Painting(
        linear,
        (
            f"{colour_name} sand dunes",
            f"a desert of {colour_name} dunes",
            f"dunes of {colour_name} sand",
        ),
        times=setting.light.words,
        details=sun_words(setting, hit, view),
        attributes={"time": setting.light.time, "colour": colour_name},
        exposure=1.15,
    )


def canyon(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint red table mountains with strata."""
    horizon = float(rng.uniform(0.4, 0.55))
    setting = choose_setting(
        rng, ("dawn", "day", "day", "sunset", "sunset", "dusk", "night"), horizon, 1.1
    )
    height = reliefs.canyon(rng)
    river = bool(rng.random() < 0.3) and zoom == "wide"
    water = float(np.quantile(height, 0.22)) if river else -1.0
    surface = np.maximum(height, np.float32(water))
    x, z, eye = free_eye(rng, surface, above=float(rng.uniform(0.02, 0.05)), wish=1.0)
    camera = Camera(x, z, eye, horizon, 1.1, 0.005, 0.95)
    relief = illuminate(height, setting.to_sun)
    view = window(rng, zoom, px, y=(horizon - 0.12, 0.85))

    def colouring(ground: Ground) -> Picture:
        layer = (
            sample(tile(2, 1.2, 3.0, 60.0), ground.up * 2.3, 0.05 * ground.x) + 0.25 * ground.grain
        )
        rock = ramp(
            layer,
            [
                (-2.2, "#6a2416"),
                (-0.8, "#a8452a"),
                (0.2, "#c8683c"),
                (1.0, "#dc9460"),
                (2.2, "#f0c898"),
            ],
        )
        sand = mix(rgb("#b4683c"), rgb("#d89a64"), smoothstep(-1, 1, ground.grain))
        scrub = smoothstep(0.9, 1.5, ground.grain) * smoothstep(0.5, 0.2, ground.steep)
        sand = mix(sand, rgb("#5c6434"), scrub * 0.7)
        return mix(rock, sand, smoothstep(0.7, 0.3, ground.steep))

    cloud = float(rng.choice([0.0, 0.35, 0.6]))
    linear, hit = compose(
        rng, view, relief, camera, setting, colouring, water=water, rough=0.7, fog=1.1, cloud=cloud
    )
    wet = bool((hit.ground & (hit.up <= water + 1e-5)).mean() > 0.06)
    return Painting(
        linear,
        ("a red rock canyon", "red canyon cliffs", "a canyon of red rock"),
        times=setting.light.words,
        details=sun_words(setting, hit, view) + (("a lake in front",) if wet else ()),
        attributes={"time": setting.light.time, "lake": "yes" if wet else "no"},
        exposure=1.15,
    )


SEASONS = {
    "spring": ("green", "#3c7a1e", "#8abf3c", "#244f18"),
    "autumn": ("golden", "#a8742a", "#dcae4c", "#8a3c18"),
    "winter": ("snowy", "#dfe8f2", "#f8fbff", "#3c4a50"),
}


def hills(rng: np.random.Generator, px: int, zoom: str) -> Painting:
    """Paint rolling hills with meadows and woods."""
    horizon = float(rng.uniform(0.38, 0.52))
    setting = choose_setting(
        rng, ("dawn", "day", "day", "sunset", "sunset", "dusk", "night", "storm"), horizon, 1.0
    )
    height = reliefs.hills(rng)
    season = str(rng.choice(list(SEASONS)))
    word, low, high, wood = SEASONS[season]
    x, z, eye = free_eye(rng, height, above=float(rng.uniform(0.015, 0.035)), wish=0.4)
    camera = Camera(x, z, eye, horizon, 1.0, 0.005, 0.95)
    trees = tile(7, 1.6, 5.0, 60.0)
    rows = np.arange(height.shape[0], dtype=np.float32) / height.shape[0]
    where = sample(trees, rows[None, :] * 2 + 0 * rows[:, None], rows[:, None] * 2 + 0 * rows)
    height = (height + 0.0035 * smoothstep(0.7, 0.85, where)).astype(np.float32)
    relief = illuminate(height, setting.to_sun)
    view = window(rng, zoom, px, y=(horizon + 0.03, 0.9))

    def colouring(ground: Ground) -> Picture:
        meadow = mix(rgb(low), rgb(high), smoothstep(-1.3, 1.3, ground.grain))
        leafy = sample(trees, ground.x * 2, ground.z * 2)
        crown = sample(tile(8, 1.0, 20.0, 120.0), ground.x * 4, ground.z * 4)
        leaves = mix(rgb(wood) * 0.45, rgb(wood) * 1.5, smoothstep(-1.5, 1.5, crown))
        return mix(meadow, leaves, smoothstep(0.7, 0.8, leafy + 0.08 * crown))

    cloud = 0.95 if setting.light.time == "storm" else float(rng.choice([0.0, 0.4, 0.65]))
    linear, hit = compose(
        rng, view, relief, camera, setting, colouring, water=-1.0, rough=0.4, fog=1.3, cloud=cloud
    )
    return Painting(
        linear,
        (f"{word} rolling hills", f"{word} hills with woods", f"{season} hills, {word} meadows"),
        times=setting.light.words,
        details=sun_words(setting, hit, view),
        attributes={"time": setting.light.time, "season": season},
        exposure=1.15,
    )
