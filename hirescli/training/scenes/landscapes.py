"""Mountains, dunes, canyons and hills: ground colours, light, haze, and lakes that mirror."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hirescli.training.scenes.noise import Field, Picture, sample, smoothstep, tile
from hirescli.training.scenes.palette import LIGHTS, Light, mix, rgb
from hirescli.training.scenes.relief import Relief
from hirescli.training.scenes.terrain import Camera, Hit, look, slopes
from hirescli.training.scenes.view import View
from hirescli.training.scenes.water import DEEP, side_of, sky_above


@dataclass(frozen=True)
class Setting:
    """The light of a landscape: `to_sun` in the world, `sun` in the picture, shown or not."""

    light: Light
    to_sun: tuple[float, float, float]
    sun: tuple[float, float]
    shown: bool


@dataclass(frozen=True)
class Ground:
    """Ground points of the visible pixels, all (n,) vectors: to be coloured by a family."""

    x: Field
    z: Field
    up: Field
    steep: Field
    grain: Field
    footprint: Field


Colouring = Callable[[Ground], Picture]


def choose_setting(
    rng: np.random.Generator, times: tuple[str, ...], horizon: float, width: float
) -> Setting:
    """Choose the time of day and where its sun stands: ahead in the picture, or aside."""
    light = LIGHTS[str(rng.choice(times))]
    low = light.elevation[0] < 0.2
    rise = float(rng.uniform(*light.elevation))
    shown = bool(light.disk) and light.sun.any() and rng.random() < (0.65 if low else 0.5)
    if shown:
        x = float(rng.choice([0.2, 0.5, 0.8]) + rng.uniform(-0.06, 0.06))
        lift = float(rng.uniform(0.13, 0.26)) if low else float(rng.uniform(0.24, 0.32))
        sun = (x, horizon - min(lift, horizon - 0.06))
        # The drawn sun is ahead; its light is turned aside a little so that faces model.
        return Setting(light, ((x - 0.5) * width * 2.4 + 0.25, max(rise, 0.3), 0.75), sun, True)
    side = float(rng.choice([-1.0, 1.0]))
    back = float(rng.uniform(-0.6, 0.25))
    return Setting(light, (side, max(rise, 0.28), back), (0.5 + side * 1.2, horizon - 0.3), False)


def lit(
    setting: Setting, colour: Picture, gx: Field, gz: Field, lit_share: Field, hollow: Field
) -> Picture:
    """Light a ground: sun with shadow, sky from above, a little bounced light."""
    sx, sy, sz = setting.to_sun
    norm = 1 / np.sqrt(gx * gx + gz * gz + 1)
    length = float(np.sqrt(sx * sx + sy * sy + sz * sz))
    facing = np.clip((-gx * sx + sy - gz * sz) * norm / np.float32(length), 0, 1) * lit_share
    open_sky = np.clip((0.45 + 0.55 * norm) * (1 - hollow * 9), 0.25, 1.15)
    light = setting.light
    received = light.direct * facing[..., None] + light.ambient * open_sky[..., None]
    return (colour * received).astype(np.float32)


def paint_land(
    relief: Relief,
    hit: Hit,
    view: View,
    camera: Camera,
    setting: Setting,
    colouring: Colouring,
    *,
    rough: float,
    fog: float,
    ripples: Callable[[Ground], tuple[Field, Field]] | None = None,
) -> Picture:
    """Colour and light the ground pixels of a view; gives (n, 3) for `hit.ground`."""
    some = hit.ground
    flat = Hit(
        distance=hit.distance[some][None, :],
        x=hit.x[some][None, :],
        z=hit.z[some][None, :],
        up=hit.up[some][None, :],
        ground=some[some][None, :],
    )
    gx, gz = slopes(relief, flat, view, camera, rough)
    footprint = flat.distance * np.float32(camera.width / (view.px * view.factor))
    mottle = sample(tile(3, 1.3, 4.0, 120.0), flat.x * 5, (flat.z + flat.up) * 5)
    if view.factor > 1:
        mottle = 0.6 * mottle + 0.6 * sample(
            tile(4, 1.3, 4.0, 120.0), flat.x * 41, (flat.z + flat.up) * 41
        )
    ground = Ground(flat.x, flat.z, flat.up, np.sqrt(gx * gx + gz * gz), mottle, footprint)
    if ripples is not None:
        rx, rz = ripples(ground)
        gx, gz = gx + rx, gz + rz
    shade = sample(relief.shadow, flat.x, flat.z)
    lit_share = smoothstep(-0.004, 0.0015, flat.up - shade)
    hollow = sample(relief.hollow, flat.x, flat.z)
    linear = lit(setting, colouring(ground), gx, gz, lit_share, hollow)
    low = np.exp(-np.maximum(flat.up, 0) * 7)
    haze = 1 - np.exp(
        -((flat.distance * np.float32(fog * setting.light.fog)) ** 1.5) * (0.35 + 0.65 * low)
    )
    hazy: Picture = mix(linear, _haze_colour(flat, camera, setting), haze)[0]
    return hazy


def _haze_colour(flat: Hit, camera: Camera, setting: Setting) -> Picture:
    """Haze, brighter towards a sun that is shown."""
    across = (flat.x - camera.x) / np.maximum(flat.distance, 1e-3) / camera.width + 0.5
    near_sun = np.exp(-np.abs(across - setting.sun[0]) * 3.5) * np.float32(setting.shown)
    light = setting.light
    return light.haze + light.horizon * (near_sun * 0.35)[..., None]


def add_lake(
    rng: np.random.Generator,
    linear: Picture,
    hit: Hit,
    view: View,
    camera: Camera,
    setting: Setting,
    water: float,
    calm: float,
) -> None:
    """Turn the pixels at the water level into a mirror of the picture above, in place."""
    wet = hit.ground & (hit.up <= np.float32(water + 1e-5))
    rows, columns = np.nonzero(wet)
    if rows.size == 0:
        return
    distance, gx, gz = hit.distance[wet], hit.x[wet], hit.z[wet]
    footprint = distance * np.float32(camera.width / (view.px * view.factor))
    wave = np.zeros_like(distance)
    for octave, period in enumerate((0.16, 0.05, 0.016, 0.005)):
        fade = np.clip(1.3 - footprint * footprint * 6e3 / period - footprint * 30 / period, 0, 1)
        ox, oz = rng.uniform(0, 1, 2)
        field = tile(5 + octave, 1.6, 6.0, 40.0)
        wave += (
            sample(field, gx / np.float32(period * 2) + ox, gz / np.float32(period) + oz) * fade
        )
    horizon_row = (camera.horizon - view.y0) * view.factor * view.px
    reach = (rows - horizon_row) / (view.px * view.factor)
    jitter = wave * np.float32(calm * view.px * view.factor) * (0.010 + 0.05 * np.abs(reach))
    mirrored = np.clip(2 * horizon_row - rows + jitter, 0, view.px - 1).astype(np.int32)
    sway = np.clip(columns + jitter * 0.3, 0, view.px - 1).astype(np.int32)
    seen = linear[mirrored, sway]
    dip = np.clip((camera.height - water) / distance, 0, 1)
    fresnel = 0.10 + 0.80 * np.exp(-dip * 2.2) + 0.04 * wave
    body = rgb(DEEP[setting.light.time]) * np.float32(0.8)
    linear[wet] = mix(body, seen * np.float32(0.92), np.clip(fresnel, 0, 1).astype(np.float32))
    if setting.light.sun.any() and setting.shown:
        off = (columns / (view.px * view.factor) + view.x0 - setting.sun[0]) / 0.05
        flash = np.exp(-off * off) * smoothstep(0.5, 2.2, wave) * 0.35
        linear[wet] += setting.light.sun * flash[:, None].astype(np.float32)


def compose(
    rng: np.random.Generator,
    view: View,
    relief: Relief,
    camera: Camera,
    setting: Setting,
    colouring: Colouring,
    *,
    water: float,
    rough: float,
    fog: float,
    cloud: float,
    ripples: Callable[[Ground], tuple[Field, Field]] | None = None,
    lights: Callable[[Field, Field], Picture] | None = None,
) -> tuple[Picture, Hit]:
    """Draw sky (with `lights` added to it, if given), ground and lake of a landscape."""
    hit = look(relief, camera, view, water=water, rough=rough)
    gx, gy = view.grid()
    x, y = (np.ascontiguousarray(a) for a in np.broadcast_arrays(gx, gy))
    sky_rows = int(np.flatnonzero((~hit.ground).any(axis=1)).max(initial=-1)) + 1
    linear = np.zeros((view.px, view.px, 3), np.float32)
    if sky_rows:
        sun = setting.sun if setting.shown else (setting.sun[0] * 3 - 1, setting.sun[1])
        linear[:sky_rows] = sky_above(
            rng, view, setting.light, sun, camera.horizon, x[:sky_rows], y[:sky_rows], cloud
        )
        if lights is not None:
            linear[:sky_rows] += lights(x[:sky_rows], y[:sky_rows])
    if hit.ground.any():
        linear[hit.ground] = paint_land(
            relief, hit, view, camera, setting, colouring, rough=rough, fog=fog, ripples=ripples
        )
    if water > 0:
        add_lake(rng, linear, hit, view, camera, setting, water, calm=float(rng.uniform(0.3, 1)))
    return linear, hit


def sun_words(setting: Setting, hit: Hit, view: View) -> tuple[str, ...]:
    """Say where a shown sun or moon stands, if no ground hides it in the wide view."""
    if not setting.shown or view.factor > 1:
        return ()
    row, column = (int(np.clip(place, 0, 1) * (view.px - 1)) for place in setting.sun[::-1])
    if hit.ground[row, column]:
        return ()
    return (side_of(setting.sun[0], "moon" if setting.light.time == "night" else "sun"),)
