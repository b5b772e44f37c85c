"""One pass over a picture, handed to all measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hirescli.errors import RequestError
from hirescli.evaluation.inspection import repetition, seams
from hirescli.evaluation.inspection.base import base_of
from hirescli.evaluation.inspection.drift import Cells, Drift, compare, grid_shape, same_shape
from hirescli.evaluation.inspection.reduced import Reduced
from hirescli.evaluation.inspection.repeats import Repeats
from hirescli.evaluation.inspection.repetition import Crops, Peak
from hirescli.evaluation.inspection.rows import Picture, open_picture
from hirescli.evaluation.inspection.seams import LineMeans, Seam
from hirescli.evaluation.inspection.sharpness import Level, Pyramid, effective_scale
from hirescli.evaluation.inspection.tones import LUMA, luma

if TYPE_CHECKING:
    from hirescli.evaluation.inspection.drift import Floats

Told = Callable[[int, int], None]  # rows done, of how many
LEAST_PX = 16


@dataclass(frozen=True)
class Inspection:
    """What was measured of one picture. None: it is too small for this measure, or has no base.

    Attributes:
        path: The file.
        width_px, height_px: As stored.
        format: Of the file.
        bits: Of a sample.
        seams: The strongest of the columns and of the rows, where the sides are long enough.
        repetition: Of the whole picture, shrunk.
        texture: Of squares at full resolution.
        base: The file that `drift` is against.
        drift: Colours against the base.
        levels: Sharpness, the finest level first.
        repeats: How often each pixel is repeated in both directions; 1: it is not.
        effective_scale: The share of the full side down to which there is real detail; at most
            1 / `repeats`.
    """

    path: Path
    width_px: int
    height_px: int
    format: str
    bits: int
    seams: tuple[Seam, ...]
    repetition: Peak | None
    texture: Peak | None
    base: Path | None
    drift: Drift | None
    levels: tuple[Level, ...]
    repeats: int
    effective_scale: float | None


@dataclass(frozen=True)
class Traces:
    """What a figure shows besides.

    Attributes:
        small: The picture, (height, width, 3), sRGB-coded, 0 to 1.
        small_factor: Pixels of the picture to one of `small`.
        periods: Every period that was tried, with its strongest lines.
        scores: Of each lag in `small`, as `repetition.scores`; None if that is too small.
    """

    small: NDArray[np.float32]
    small_factor: int
    periods: tuple[Seam, ...]
    scores: Floats | None


def inspect(
    path: Path, *, base: Path | None = None, told: Told = lambda done, rows: None, rows: int = 64
) -> tuple[Inspection, Traces]:
    """Measure a picture; each file is read once, from top to bottom.

    Args:
        path: A TIFF (its largest page), a PNG, a JPEG, or another that `open_picture` takes.
        base: Its base stage; None: what `base_of` finds.
        told: Called after each band.
        rows: Of a band; changes results by rounding only.

    Raises:
        RequestError: If a file is missing, foreign, damaged or smaller than `LEAST_PX`, or the
            base has another shape.
    """
    picture = open_picture(path)
    if min(picture.width_px, picture.height_px) < LEAST_PX:
        size = f"{picture.width_px}x{picture.height_px} px"
        raise RequestError(f"{path} has {size}; inspecting needs {LEAST_PX} px a side")
    base = base or base_of(path)
    grid = grid_shape(picture.width_px, picture.height_px)
    base_cells = None
    if base is not None:  # the smaller one first: what is wrong with it is said at once
        before = _base_picture(base, picture)
        grid = min(grid, grid_shape(before.width_px, before.height_px))
        base_cells = _cells(before, grid)
    return _measured(picture, grid=grid, base=base, base_cells=base_cells, told=told, rows=rows)


def _base_picture(base: Path, picture: Picture) -> Picture:
    before = open_picture(base)
    size, base_size = (picture.width_px, picture.height_px), (before.width_px, before.height_px)
    if not same_shape(size, base_size):
        raise RequestError(
            f"base {base} has {base_size[0]}x{base_size[1]} px, {picture.path} has"
            f" {size[0]}x{size[1]} px, another shape; name its own base stage with --base"
        )
    return before


def _cells(picture: Picture, grid: tuple[int, int]) -> Floats:
    cells = Cells(picture.width_px, picture.height_px, grid)
    for band in picture.bands():
        cells.fold(band)
    return cells.finish()


def _measured(
    picture: Picture,
    *,
    grid: tuple[int, int],
    base: Path | None,
    base_cells: Floats | None,
    told: Told,
    rows: int,
) -> tuple[Inspection, Traces]:
    size = picture.width_px, picture.height_px
    lines, crops, pyramid = LineMeans(*size), Crops(*size), Pyramid(*size)
    repeats = Repeats(*size)
    small, cells = Reduced(*size, repetition.REDUCED_PX), Cells(*size, grid)
    done = 0
    for band in picture.bands(rows):
        levels = luma(band)
        for measure in (crops, pyramid, repeats):
            measure.fold(levels)
        lines.fold(band)
        small.fold(band)
        if base_cells is not None:
            cells.fold(band)
        done += band.shape[0]
        told(done, picture.height_px)
    copy = small.finish()
    periods = _periods(lines, picture.tile_px)
    peak, scores = _repetition(copy, small.factor)
    measured, repeated = pyramid.finish(), repeats.finish()
    found = Inspection(
        path=picture.path,
        width_px=picture.width_px,
        height_px=picture.height_px,
        format=picture.format,
        bits=picture.bits,
        seams=_strongest(periods),
        repetition=peak,
        texture=crops.finish(),
        base=base,
        drift=None if base_cells is None else compare(cells.finish(), base_cells),
        levels=measured,
        repeats=repeated,
        effective_scale=effective_scale(measured, repeated),
    )
    return found, Traces(copy, small.factor, tuple(periods), scores)


def _periods(lines: LineMeans, tile_px: Sequence[int]) -> list[Seam]:
    columns, rows = lines.finish()
    found = seams.find_seams(columns, "columns", tile_px[:1])
    return found + seams.find_seams(rows, "rows", tile_px[1:])


def _strongest(periods: Sequence[Seam]) -> tuple[Seam, ...]:
    each = (
        seams.strongest([seam for seam in periods if seam.axis == axis])
        for axis in ("columns", "rows")
    )
    return tuple(seam for seam in each if seam is not None)


def _repetition(copy: NDArray[np.float32], factor: int) -> tuple[Peak | None, Any]:
    if min(copy.shape[:2]) < repetition.LEAST_PX:
        return None, None
    brightness = copy @ LUMA * 255
    scores = repetition.scores(brightness)
    return repetition.peak(scores, factor), scores
