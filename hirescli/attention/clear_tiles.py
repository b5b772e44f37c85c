"""An image cut in tiles of queries, each with the rectangle of keys in its reach.

Shapes: B batch, H heads, R rows and C columns of tokens, h heads of a piece, n tiles of it beside
one another, L queries and M keys of a tile, d channels per head.

Queries are cut in squares of `TILE` tokens. The keys of a square are those of the rectangle
around it that reaches window - 1 further on each side, less what lies outside the image; within
it a mask keeps the circle. Tiles whose rectangles lie alike around them share one mask and are
computed together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hirescli.planning.scratch import PIECE_BYTES, TILE


@dataclass(frozen=True)
class Run:
    """Tiles one after the other along one axis that see their keys alike.

    Attributes:
        first: First query of the first tile.
        size: Queries of a tile.
        count: Number of tiles, `size` apart.
        first_key: First key of the first tile.
        keys: Keys of a tile.
        before: Keys of a tile that lie before its first query.
    """

    first: int
    size: int
    count: int
    first_key: int
    keys: int
    before: int

    def follows(self, other: Run) -> bool:
        """Whether this one tile goes on where another run ends, and sees its keys alike."""
        ends = other.first + other.count * other.size
        same = (self.size, self.keys, self.before) == (other.size, other.keys, other.before)
        return same and self.first == ends

    def split(self, most: int) -> Iterator[Run]:
        """The same tiles in runs of at most so many."""
        for start in range(0, self.count, most):
            step = start * self.size
            yield replace(
                self,
                first=self.first + step,
                first_key=self.first_key + step,
                count=min(most, self.count - start),
            )


def runs(queries: int, keys: int, *, offset: int, reach: int) -> list[Run]:
    """Cut an axis in tiles and group those that see their keys alike.

    Args:
        queries: Positions to compute.
        keys: Positions there are keys of.
        offset: Of query 0 among the keys.
        reach: How far a query sees to either side.
    """
    made: list[Run] = []
    for first in range(0, queries, TILE):
        size = min(TILE, queries - first)
        lo = max(0, offset + first - reach)
        hi = min(keys, offset + first + size + reach)
        run = Run(first, size, 1, lo, hi - lo, offset + first - lo)
        if made and run.follows(made[-1]):
            run = replace(made[-1], count=made.pop().count + 1)
        made.append(run)
    return made


@dataclass(frozen=True)
class Piece:
    """Tiles beside one another, of some heads, that are computed together.

    Attributes:
        heads: Of H.
        down: The one row of tiles.
        across: The tiles.
        mask: Added to scores (L, M): 0 where a query sees a key, else minus infinity.
    """

    heads: slice
    down: Run
    across: Run
    mask: Tensor

    def queries(self, t_BHRCd: Tensor) -> Tensor:  # noqa: N803
        """What belongs to the queries: (B, h, n, L, ...), copied."""
        tiles: Tensor = self._region(t_BHRCd).unflatten(3, (self.across.count, self.across.size))
        return tiles.transpose(2, 3).flatten(3, 4)

    def keys(self, t_BHRCd: Tensor) -> Tensor:  # noqa: N803
        """What belongs to the keys: (B, h, n, M, d), copied."""
        across = self.across
        windows = self._neighbourhood(t_BHRCd).unfold(
            3, across.keys, across.size
        )  # (..., n, d, m)
        return windows.permute(0, 1, 3, 2, 5, 4).flatten(3, 4)

    def put(self, tiles_BhnLd: Tensor, into_BHRCd: Tensor) -> None:  # noqa: N803
        """Write what was computed for the queries."""
        tiles = tiles_BhnLd.unflatten(3, (self.down.size, self.across.size)).transpose(2, 3)
        region = self._region(into_BHRCd).unflatten(3, (self.across.count, self.across.size))
        region.copy_(tiles)

    def add(self, tiles_BhnMd: Tensor, into_BHRCd: Tensor) -> None:  # noqa: N803
        """Add what was computed for the keys; the keys of neighbours overlap."""
        across, region = self.across, self._neighbourhood(into_BHRCd)
        for n, tile in enumerate(tiles_BhnMd.unbind(2)):
            start = n * across.size
            region[:, :, :, start : start + across.keys] += tile.unflatten(2, (-1, across.keys))

    def _region(self, t_BHRCd: Tensor) -> Tensor:  # noqa: N803
        down, across = self.down, self.across
        columns = slice(across.first, across.first + across.count * across.size)
        return t_BHRCd[:, self.heads, down.first : down.first + down.size, columns]

    def _neighbourhood(self, t_BHRCd: Tensor) -> Tensor:  # noqa: N803
        down, across = self.down, self.across
        last = across.first_key + (across.count - 1) * across.size + across.keys
        rows = slice(down.first_key, down.first_key + down.keys)
        return t_BHRCd[:, self.heads, rows, across.first_key : last]


def pieces(q_BHRCd: Tensor, k_BHRCd: Tensor, window: int, first_row: int) -> Iterator[Piece]:  # noqa: N803
    """All pieces of a call, each of about `PIECE_BYTES` of copied keys and values."""
    _, heads, rows, columns, d = q_BHRCd.shape
    batch, key_rows = k_BHRCd.shape[0], k_BHRCd.shape[2]
    down_runs = runs(rows, key_rows, offset=first_row, reach=window - 1)
    across_runs = runs(columns, columns, offset=0, reach=window - 1)
    for down, across in ((a, b) for a in down_runs for b in across_runs):
        mask = _mask(down, across, window).to(q_BHRCd)
        tile_bytes = 2 * batch * d * down.keys * across.keys * q_BHRCd.element_size()
        together = max(1, PIECE_BYTES // tile_bytes)  # tiles, each of one head
        most = max(1, together // heads)
        step = max(1, together // most)
        for row in down.split(1):
            for part in across.split(most):
                for head in range(0, heads, step):
                    yield Piece(slice(head, head + step), row, part, mask)


def _mask(down: Run, across: Run, window: int) -> Tensor:
    """(L, M) of a tile: minus infinity where a key is not nearer than the window."""
    down_squared = _offsets(down)[:, None, :, None] ** 2
    far = down_squared + _offsets(across)[None, :, None, :] ** 2 >= window**2
    return torch.zeros(far.shape).masked_fill_(far, -torch.inf).flatten(2, 3).flatten(0, 1)


def _offsets(run: Run) -> Tensor:
    """From each query of a tile to each key."""
    return torch.arange(run.keys) - torch.arange(run.size)[:, None] - run.before
