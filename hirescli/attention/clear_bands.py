"""CLEAR's attention in bands of rows.

An image query reads keys of the rows around its own, which is a halo of window - 1 rows, and keys
without rows: the text's, and pooled ones. A text query reads all rows, which is a reduction. So a
block is one pass over the rows, and nothing but its output rests behind it; pooled keys, which all
queries read, are made in the pass before.

Shapes: queries, keys and values (1, H, N, d) of the image, (1, H, T, d) of the text.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hirescli.attention.clear import clear_attention, local_attention, pool
from hirescli.attention.clear_geometry import Geometry
from hirescli.bands.attention import gather
from hirescli.bands.joint import Joint, Part, on_sequences
from hirescli.bands.joint_attention import text_attention
from hirescli.bands.record import handles, record_local
from hirescli.bands.tensor import Grid, Node, Span
from hirescli.planning.trace import CLEAR_ATTENTION, Window

# Copies on a GPU: queries, keys, values and output in the order of tiles. What a CPU takes does
# not grow with the rows (`hirescli.planning.scratch`).
_COPIES = 4


@on_sequences(clear_attention)
def sequence_attention(
    func: Any, query: Joint, key: Joint, value: Joint, geometry: Geometry, *,
    scale: float | None = None, spatial_weight: Tensor | None = None,
) -> Joint:  # fmt: skip
    """Attention of text and image."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    text = text_attention(query.text, key, value, scale)
    parts = (query.image, key.image, value.image)
    image = _local(*parts, [key.text], [value.text], geometry, scale, spatial_weight)
    return query.beside(image, text)


@handles(clear_attention)
def image_attention(
    func: Any, query: Node, key: Node, value: Node, geometry: Geometry, *,
    scale: float | None = None, spatial_weight: Tensor | None = None,
) -> Node:  # fmt: skip
    """Attention of an image alone."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return _local(query, key, value, [], [], geometry, scale, spatial_weight)


def _local(
    query: Node, key: Node, value: Node, keys: list[Part], values: list[Part],
    geometry: Geometry, scale: float, spatial_weight: Tensor | None,
) -> Node:  # fmt: skip
    """Image queries to keys in reach, to `keys` without rows and to pooled ones."""
    assert query.grid is not None
    grid, halo = query.grid, geometry.halo
    pooled: list[Node] = []
    if geometry.down_factor > 1:
        assert spatial_weight is not None
        pooled = [gather(_pooled(t, geometry, spatial_weight)) for t in (key, value)]

    def attend(rows: list[Any], span: Span) -> Tensor:
        q, k, v, *others = (rows[i] if isinstance(i, int) else span.bring(i) for i in places)
        first, q, k, v = _cut(q, k, v, span, grid)
        beside = _beside(k, v, others[: len(keys)], others[len(keys) : 2 * len(keys)])
        if pooled:
            beside = [torch.cat([b, *g()], 2) for b, g in zip(beside, rows[-2:], strict=True)]
        return local_attention(
            q, k, v, *beside, columns=grid.width, window=geometry.window, scale=scale,
            first_row=first,
        )  # fmt: skip

    given: list[Part] = [query, key, value, *keys, *values]
    nodes = [each for each in given if isinstance(each, Node)]
    places = [nodes.index(each) if isinstance(each, Node) else each for each in given]
    flops = 4.0 * query.shape[1] * query.shape[3]
    texts = sum(each.shape[2] for each in keys)
    return record_local(
        None, (*nodes, *pooled), {},
        name=CLEAR_ATTENTION, shape=query.shape, dtype=query.dtype, grid=grid, kernel=attend,
        reach=Window(2 * halo + 1, 1, halo, halo), anchor=True,
        weights=tuple(each for each in given if isinstance(each, Tensor)),
        px_flops=flops * (near_keys(geometry.window) + texts), px_key_flops=flops if pooled else 0,
        px_scratch_bytes=_COPIES * query.dtype.itemsize * query.shape[1] * query.shape[3],
    )  # fmt: skip


def near_keys(window: int) -> int:
    """Image keys in reach of a query that is far from the borders."""
    reaches = range(1 - window, window)
    return sum(2 * math.isqrt(window**2 - 1 - down**2) + 1 for down in reaches)


def _cut(
    q: Tensor, k: Tensor, v: Tensor, span: Span, grid: Grid
) -> tuple[int, Tensor, Tensor, Tensor]:
    """The band's own queries, and keys without the rows of zeros beyond the image.

    All three come with the halo.

    Returns:
        The row of the keys that is the first row of the queries, queries, keys, values.
    """
    width = grid.width
    above = max(0, -span.first)
    rows = k.shape[2] // width - above
    rows -= max(0, span.first + above + rows - grid.rows)
    own = q.narrow(2, (span.lo - span.first) * width, span.rows * width)
    k, v = (t.narrow(2, above * width, rows * width) for t in (k, v))
    return span.lo - span.first - above, own, k, v


def _beside(k: Tensor, v: Tensor, keys: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    """Keys and values without rows, as none where there are none."""
    if keys:
        return [keys[0], values[0]]
    return [t[:, :, :0] for t in (k, v)]


def _pooled(x: Node, geometry: Geometry, spatial_weight: Tensor) -> Node:
    """Squares of image tokens, weighted and summed."""
    assert x.grid is not None
    f, grid = geometry.down_factor, x.grid
    columns = grid.width
    return record_local(
        lambda rows, weight: pool(rows, columns, weight), (x, spatial_weight), {},
        name="pool", dtype=x.dtype,
        shape=torch.Size((*x.shape[:2], geometry.pooled_tokens, x.shape[3])),
        grid=Grid(grid.rows // f, grid.width // f, grid.level / f, 2),
        reach=Window(f, f), width_reach=Window(f, f),
    )  # fmt: skip
