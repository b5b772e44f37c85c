r"""Colour drift: how far a picture's colours have gone from those of its base stage.

A cascade decodes and encodes its picture anew in every stage, and each time the colours may move a
little, everywhere or in places. Detail is meant to change, so both pictures are compared as grids
of `GRID` cells along the longer side: the mean linear light of each cell (a pixel that lies in two
cells counts in both by its share), as CIE Lab.

- shift: the difference of the means over all cells, per channel and as dE, the Euclidean distance
  in Lab (CIE 1976). About 2 is seen side by side;
- drift map: dE[i, j] of the two cells. A stage may move a cloud from one cell to the next, so
  up to 20 in a cell is no fault;
- quarters: dE of the means over each quarter of the picture, where moved detail averages out, and
  a change of a part of the picture does not;
- spread: the deviation over cells, per channel; contrast, so to speak, with grain left out.

References:
    CIE 15, Colorimetry: Delta E*ab.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hirescli.evaluation.inspection.tones import lab, linear

Floats = NDArray[np.floating[Any]]
GRID = 8
SHAPE_TOLERANCE = 0.02  # by which aspects may differ: sizes of small stages are rounded


@dataclass(frozen=True)
class Drift:
    """A picture's colours against another's; triples are L, a, b.

    Attributes:
        shift_delta_e: Of the means over all cells.
        mean_shift: The same per channel: the picture's less the base's.
        quarter_delta_e: Of the means over the quarter that differs most.
        max_delta_e, mean_delta_e: Over the cells.
        delta_e: The drift map, (rows, columns) of cells.
        spread, base_spread: Deviations over the cells.
    """

    shift_delta_e: float
    mean_shift: tuple[float, float, float]
    quarter_delta_e: float
    max_delta_e: float
    mean_delta_e: float
    delta_e: tuple[tuple[float, ...], ...]
    spread: tuple[float, float, float]
    base_spread: tuple[float, float, float]


class Cells:
    """Mean linear light of the cells of a grid, folded from bands.

    Args:
        width_px, height_px: Of the picture.
        shape: Rows and columns of cells.
    """

    def __init__(self, width_px: int, height_px: int, shape: tuple[int, int]) -> None:
        self._down = shares(height_px, shape[0])
        self._across = shares(width_px, shape[1])
        self._sums = np.zeros((shape[0], width_px * 3), dtype=np.float64)
        self._y = 0

    def fold(self, rows: NDArray[Any]) -> None:
        """Take the next rows, (n, width, 3), uint8 or uint16."""
        light = linear(rows).reshape(rows.shape[0], -1)
        share = self._down[:, self._y : self._y + rows.shape[0]]
        for i in np.flatnonzero(share.any(axis=1)):
            self._sums[i] += share[i].astype(np.float32) @ light
        self._y += rows.shape[0]

    def finish(self) -> Floats:
        """(rows, columns, 3), linear, 0 to 1."""
        lines = self._sums.reshape(self._sums.shape[0], -1, 3)
        made: Floats = np.einsum("cx,rxk->rck", self._across, lines, optimize=True)
        return made


def grid_shape(width_px: int, height_px: int) -> tuple[int, int]:
    """Rows and columns of cells, at most one for each pixel."""
    longer = max(width_px, height_px)
    down, across = (max(1, round(GRID * side / longer)) for side in (height_px, width_px))
    return min(down, height_px), min(across, width_px)


def shares(side_px: int, cells: int) -> Floats:
    """(cells, side_px): the share of each pixel in the mean of each cell; rows sum to 1."""
    edges = np.arange(cells + 1) * side_px / cells
    pixel = np.arange(side_px)
    first = np.maximum(edges[:-1, None], pixel)
    end = np.minimum(edges[1:, None], pixel + 1)
    made: Floats = np.clip(end - first, 0, None) * cells / side_px
    return made


def same_shape(size: tuple[int, int], base_size: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) are of one aspect, within `SHAPE_TOLERANCE`."""
    ratio = size[0] * base_size[1] / (size[1] * base_size[0])
    return abs(ratio - 1) <= SHAPE_TOLERANCE


def compare(picture: Floats, base: Floats) -> Drift:
    """The drift between two grids of linear light, (rows, columns, 3)."""
    of_picture, of_base = lab(picture), lab(base)
    delta_e = _distance(of_picture, of_base)
    shift = of_picture.mean(axis=(0, 1)) - of_base.mean(axis=(0, 1))
    return Drift(
        shift_delta_e=float(np.linalg.norm(shift)),
        mean_shift=_triple(shift),
        quarter_delta_e=float(_distance(lab(_quarters(picture)), lab(_quarters(base))).max()),
        max_delta_e=float(delta_e.max()),
        mean_delta_e=float(delta_e.mean()),
        delta_e=tuple(tuple(map(float, row)) for row in delta_e),
        spread=_triple(of_picture.std(axis=(0, 1))),
        base_spread=_triple(of_base.std(axis=(0, 1))),
    )


def _quarters(cells: Floats) -> Floats:
    """The mean light of each quarter, (2, 2, 3); of a single row or column, each half."""
    down, across = (shares(side, min(2, side)) for side in cells.shape[:2])
    made: Floats = np.einsum("iy,jx,yxk->ijk", down, across, cells)
    return made


def _distance(one: Floats, other: Floats) -> Floats:
    made: Floats = np.sqrt(((one - other) ** 2).sum(axis=-1))
    return made


def _triple(values: Iterable[Any]) -> tuple[float, float, float]:
    lightness, a, b = map(float, values)
    return lightness, a, b
