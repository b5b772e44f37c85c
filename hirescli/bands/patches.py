"""Images cut into patches, and put together again: the rows of one are several of the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hirescli.bands.record import record_local
from hirescli.bands.tensor import Node
from hirescli.planning.trace import Stretch, Window


def patches(x: Node, shape: Sequence[int]) -> bool:
    """Whether an image (1, C, rows * p, columns * p) becomes (1, C, rows, p, columns, p)."""
    assert x.grid is not None
    if len(x.shape) != 4 or len(shape) != 6 or x.grid.dim != 2 or x.per_row != 1:
        return False
    _, channels, rows, down, columns, across = shape
    return tuple(x.shape) == (1, channels, rows * down, columns * across) and down == across


def patched(x: Node, meta: Tensor) -> Node:
    """As many rows as a patch has become one."""
    assert x.grid is not None
    _, _, rows, factor, columns, _ = meta.shape
    made = type(x.grid)(rows, columns, x.grid.level / factor, 2)
    return record_local(
        lambda band: band.unflatten(3, (-1, factor)).unflatten(2, (-1, factor)), (x,), {},
        name="patch", shape=meta.shape, dtype=x.dtype, grid=made,
        reach=Window(factor, factor), width_reach=Window(factor, factor),
    )  # fmt: skip


def unpatches(x: Node, shape: Sequence[int]) -> bool:
    """Whether (1, C, rows, p, columns, q) becomes an image (1, C, rows * p, columns * q)."""
    assert x.grid is not None
    if len(x.shape) != 6 or x.grid.dim != 2 or x.per_row != 1:
        return False
    _, channels, rows, down, columns, across = x.shape
    return tuple(shape) == (1, channels, rows * down, columns * across) and down == across


def unpatched(x: Node, meta: Tensor) -> Node:
    """Each row becomes as many rows as a patch has."""
    assert x.grid is not None
    grid, factor = x.grid, x.shape[3]
    made = type(grid)(meta.shape[2], meta.shape[3], grid.level * factor, 2)

    def kernel(bands: list[Any], span: Any) -> Tensor:
        rows: Tensor = bands[0].flatten(4, 5).flatten(2, 3)
        return rows.narrow(2, span.lo - factor * span.first, span.rows)

    return record_local(
        None, (x,), {},
        name="unpatch", shape=meta.shape, dtype=x.dtype, grid=made, kernel=kernel,
        reach=Stretch(factor), width_reach=Stretch(factor),
    )  # fmt: skip
