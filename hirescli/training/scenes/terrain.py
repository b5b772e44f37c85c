"""Landscapes in true perspective: from a height map to what each pixel sees.

Per column of the picture the height map is walked away from the eye in slices; the running
maximum of the elevation angle says where each row's ray first meets the ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hirescli.training.scenes.noise import Field, sample
from hirescli.training.scenes.relief import Relief, grain
from hirescli.training.scenes.view import View

GRAINS = (0.11, 0.031, 0.009, 0.0027)  # periods of the close relief, in map periods
CLOSE_SLOPE = 0.011  # its height per period; the tiles' own slopes are about 60


@dataclass(frozen=True)
class Camera:
    """Eye at (x, height, z) looking along z; `width` is the picture's width at distance 1."""

    x: float
    z: float
    height: float
    horizon: float
    width: float
    near: float
    far: float


@dataclass(frozen=True)
class Hit:
    """What each pixel sees, all (rows, columns): distance (inf for sky) and ground point."""

    distance: Field
    x: Field
    z: Field
    up: Field
    ground: np.ndarray  # bool


def _slices(camera: Camera, near: float, far: float, count: int) -> Field:
    t = np.linspace(0, 1, count, dtype=np.float32)
    # Between even in distance and even in logarithm: near slices narrow, far ones not coarse.
    even = near + (far - near) * t
    logarithmic = near * (far / near) ** t
    return (0.35 * even + 0.65 * logarithmic).astype(np.float32)


def close_height(x: Field, z: Field, footprint: Field, amount: float) -> Field:
    """Sum the close relief at ground points down to `footprint`, in map periods."""
    total = np.zeros(np.broadcast_shapes(x.shape, z.shape), np.float32)
    for index, period in enumerate(GRAINS):
        fade = np.clip(1.3 - footprint * 60 / period, 0, 1)
        rows = np.flatnonzero(fade.max(axis=-1) > 0)
        if rows.size == 0:
            break
        part = slice(rows[0], rows[-1] + 1)
        field = grain(index)[0]
        lookup = sample(field, x[part] / np.float32(period), z[part] / np.float32(period))
        total[part] += lookup * fade[part] * np.float32(amount * period * CLOSE_SLOPE)
    return total


def march(
    relief: Relief,
    camera: Camera,
    x: Field,
    y: Field,
    *,
    water: float,
    rough: float,
    slices: int,
    near: float,
    far: float,
) -> Hit:
    """Find what each pixel of columns `x` (1, w) and rows `y` (h, 1) sees.

    `water` is a height below which the ground is a level surface (-1: none); `rough` scales
    the close relief; `slices` steps are spread over distances `near`..`far`.
    """
    z = _slices(camera, near, far, slices)[:, None]
    side = (x - np.float32(0.5)) * np.float32(camera.width)
    ground_x, ground_z = camera.x + side * z, camera.z + z + 0 * side
    height = sample(relief.height, ground_x, ground_z)
    if rough > 0:
        step = (x[0, -1] - x[0, 0]) / x.shape[1]
        footprint = np.broadcast_to(z * np.float32(camera.width * step), height.shape)
        height += close_height(ground_x, ground_z, footprint, rough)
    np.maximum(height, np.float32(water), out=height)
    slope = (height - np.float32(camera.height)) / z
    top = np.maximum.accumulate(slope, axis=0)
    rays = ((np.float32(camera.horizon) - y) * np.float32(camera.width))[:, 0]
    index = _first_at_least(top, rays)
    ground = index < slices
    upper = np.clip(index, 1, slices - 1)
    lower = upper - 1
    columns = np.arange(x.shape[1])[None, :]
    s0, s1 = slope[lower, columns], slope[upper, columns]
    part = np.clip((rays[:, None] - s0) / np.where(s1 - s0 > 1e-9, s1 - s0, 1), 0, 1)
    distance = z[lower, 0] * (1 - part) + z[upper, 0] * part
    up = height[lower, columns] * (1 - part) + height[upper, columns] * part
    return Hit(
        distance, camera.x + side * distance, camera.z + distance, up.astype(np.float32), ground
    )


def _first_at_least(top: Field, rays: Field) -> np.ndarray:
    """Per column, the first slice whose running maximum reaches each ray; (rows, columns)."""
    columns = top.shape[1]
    out = np.empty((rays.size, columns), np.int32)
    rising = np.ascontiguousarray(top.T)
    for column in range(columns):
        out[:, column] = np.searchsorted(rising[column], rays)
    return out


def look(relief: Relief, camera: Camera, view: View, *, water: float, rough: float) -> Hit:
    """March a view; a closer view first finds the distances it shows, to slice only those."""
    x, y = view.grid()
    near, far = camera.near, camera.far
    if view.factor > 1:
        stride = max(view.px // 32, 1)
        coarse = march(
            relief,
            camera,
            x[:, ::stride],
            y[::stride],
            water=water,
            rough=0.0,
            slices=256,
            near=near,
            far=far,
        )
        if coarse.ground.any():
            seen = coarse.distance[coarse.ground]
            near, far = max(near, 0.85 * float(seen.min())), min(far, 1.2 * float(seen.max()))
    return march(
        relief,
        camera,
        x,
        y,
        water=water,
        rough=rough,
        slices=int(view.px * 0.8),
        near=near,
        far=far,
    )


def slopes(
    relief: Relief, hit: Hit, view: View, camera: Camera, rough: float
) -> tuple[Field, Field]:
    """Slopes along x and z at the ground points, with close relief down to the pixel."""
    gx, gz = sample(relief.slope_x, hit.x, hit.z), sample(relief.slope_z, hit.x, hit.z)
    footprint = hit.distance * np.float32(camera.width / (view.px * view.factor))
    # Cliffs are steep: let the height shift the lookup, or the grain would smear down them.
    u, v = hit.x + hit.up * np.float32(0.6), hit.z + hit.up * np.float32(0.9)
    for index, period in enumerate(GRAINS):
        fade = np.clip(1.5 - footprint * 110 / period, 0, 1)
        if not fade.any():
            break
        _, along_x, along_z = grain(index)
        weight = fade * np.float32(rough * CLOSE_SLOPE)
        gx += sample(along_x, u / np.float32(period), v / np.float32(period)) * weight
        gz += sample(along_z, u / np.float32(period), v / np.float32(period)) * weight
    return gx, gz


def free_eye(
    rng: np.random.Generator, height: Field, *, above: float, wish: float, tries: int = 24
) -> tuple[float, float, float]:
    """Find an eye place (x, z, height): of random places the one whose view is most open.

    `wish` weighs high ground ahead, so that peaks stand in the picture.
    """
    px = height.shape[0]
    best, place = -1e9, (0.0, 0.0, above)
    ahead = np.linspace(0.03, 0.7, 24)
    for _ in range(tries):
        x, z = rng.uniform(0, 1, 2)
        rows = ((z + ahead) * px).astype(int) % px
        fan = [height[rows, ((x + ahead * t) * px).astype(int) % px] for t in (-0.35, 0, 0.35)]
        here = float(height[int(z * px), int(x * px)])
        eye = here + above
        blocked = max(float(((part - eye) / ahead)[:7].max()) for part in fan)
        rise = np.mean([float(((part - eye) / ahead)[7:].max()) for part in fan])
        score = wish * float(rise) - 3 * max(0.0, blocked - 0.02) - here
        if score > best:
            best, place = score, (float(x), float(z), eye)
    x, z, eye = place
    # Stay above all that lies right in front, or the nearest slices would hide everything.
    near = np.arange(0, 0.05, 1 / px)[:, None]
    sides = np.linspace(-0.6, 0.6, 9)[None, :]
    front = height[((z + near) * px).astype(int) % px, ((x + near * sides) * px).astype(int) % px]
    return x, z, max(eye, float((front - 0.15 * near).max()) + 0.3 * above)
