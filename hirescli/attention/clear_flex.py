"""CLEAR's attention of image tokens by FlexAttention, for CUDA.

Shapes: B batch, H heads, R rows and C columns of tokens, E further keys, d channels per head,
T = `TILE`, Q and K tiles of queries and of keys.

FlexAttention computes blocks of 64 queries by 64 keys and leaves out those that nobody asks for.
Tokens in raster order make poor blocks: 64 of them are a piece of one row, and their
neighbourhoods lie in as many blocks as the window has rows, each nearly empty. So tokens are laid
out tile by tile, in squares of 8x8, one block each. Which tiles are in reach of a tile is a
formula of their corners: the table of blocks is made from that, in time and memory linear in the
tokens, and no mask of all pairs is ever made.

Kernels are built and tried once on a few tokens of the same dtype, against `clear_blocked`; where
they do not build or differ, a warning says so, and that is used instead.

References:
    FlexAttention, https://arxiv.org/abs/2412.05496
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.attention.clear_blocked import blocked_attention

TILE = 8
BLOCK = TILE * TILE
_FAR = 1 << 14  # a coordinate out of reach of all, whose square fits into 32 bits
# Options of the kernel, tried in turn: the second for cards with little shared memory.
_KERNELS: tuple[dict[str, int], ...] = (
    {"BLOCK_M": BLOCK, "BLOCK_N": BLOCK},
    {"BLOCK_M": BLOCK, "BLOCK_N": BLOCK, "num_stages": 1},
)
_TRIED_TOLERANCE = 2e-2  # half precision, TF32; a wrong table is off by far more


@dataclass(frozen=True)
class Layout:
    """Where queries and keys lie. Hashable, so that a table is made once for all layers.

    Attributes:
        rows, columns: R and C of the queries.
        key_rows: Rows of the keys.
        first_row: Row of the keys that is the first of the queries.
        beside: E.
        window: In tokens.
    """

    rows: int
    columns: int
    key_rows: int
    first_row: int
    beside: int
    window: int

    @property
    def key_tiles(self) -> int:
        """Tiles of image keys; the blocks of further keys follow them."""
        return _tiles(self.key_rows) * _tiles(self.columns)

    @property
    def beside_blocks(self) -> int:
        """Blocks of further keys, the last of which may not be full."""
        return -(-self.beside // BLOCK)


@dataclass(frozen=True)
class Table:
    """The blocks of keys that each tile of queries asks for.

    Attributes:
        partial: (Q, n) block numbers, int32, of which the first `partial_count` count: blocks
            that need the mask.
        partial_count: (Q), int32.
        full, full_count: Likewise of blocks of which every query sees every key.
    """

    partial: Tensor
    partial_count: Tensor
    full: Tensor
    full_count: Tensor


def flex_attention_local(
    q_BHRCd: Tensor, k_BHRCd: Tensor, v_BHRCd: Tensor, k_BHEd: Tensor, v_BHEd: Tensor,  # noqa: N803
    window: int, first_row: int, scale: float, *,
    attend: Callable[..., Any] | None = None,
) -> Tensor:  # fmt: skip
    """As `clear_blocked.blocked_attention`, without gradients.

    `attend` is FlexAttention, compiled with its options; None: as tried on this device.
    """
    rows, columns = q_BHRCd.shape[2:4]
    layout = Layout(
        rows, columns, k_BHRCd.shape[2], first_row, beside=k_BHEd.shape[2], window=window
    )
    attend = attend or _tried(q_BHRCd.device, q_BHRCd.dtype, q_BHRCd.shape[-1])
    assert attend is not None, "there is no FlexAttention here"
    keys, values = (
        torch.cat([_tiled(t), _padded(more)], 2)
        for t, more in ((k_BHRCd, k_BHEd), (v_BHRCd, v_BHEd))
    )
    mask = _block_mask(layout, q_BHRCd.device)
    out: Tensor = attend(_tiled(q_BHRCd), keys, values, block_mask=mask, scale=scale)
    down, across = _tiles(rows), _tiles(columns)
    grid: Tensor = out.unflatten(2, (down, across, TILE, TILE)).transpose(3, 4).flatten(4, 5)
    return grid.flatten(2, 3)[:, :, :rows, :columns]


def flex_works(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Whether FlexAttention runs here, with these numbers, and is right; tried once."""
    return device.type == "cuda" and _tried(device, dtype, channels) is not None


# Tokens in tiles


def _tiles(size: int) -> int:
    return -(-size // TILE)


def _tiled(t_BHRCd: Tensor) -> Tensor:  # noqa: N803
    """Tokens tile by tile, (B, H, tokens, d); tiles at the edge are filled with zeros."""
    rows, columns = t_BHRCd.shape[2:4]
    padded = F.pad(t_BHRCd, (0, 0, 0, -columns % TILE, 0, -rows % TILE))
    tiles: Tensor = padded.unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE)).transpose(3, 4)
    return tiles.flatten(2, 5)


def _padded(t_BHEd: Tensor) -> Tensor:  # noqa: N803
    return F.pad(t_BHEd, (0, 0, 0, -t_BHEd.shape[2] % BLOCK))


def _places(rows: int, columns: int, first_row: int) -> tuple[Tensor, Tensor]:
    """Row and column of each token in tiles, int32; what fills a tile is far from all."""
    y = torch.arange(_tiles(rows) * TILE, dtype=torch.int32)
    x = torch.arange(_tiles(columns) * TILE, dtype=torch.int32)
    outside = (y >= rows)[:, None] | (x >= columns)
    y_grid = (y + first_row)[:, None].expand(outside.shape).masked_fill(outside, -_FAR)
    x_grid = x.expand(outside.shape)
    down, across = (_tiled(grid[None, None, :, :, None]).flatten() for grid in (y_grid, x_grid))
    return down, across


# Which blocks


def table(layout: Layout) -> Table:
    """The blocks of every tile of queries, from the corners of tiles."""
    low_y, most_y, row_tiles = _axis(layout.rows, layout.key_rows, layout.first_row, layout.window)
    low_x, most_x, column_tiles = _axis(layout.columns, layout.columns, 0, layout.window)

    def joined(down: Tensor, across: Tensor) -> Tensor:
        return (down[:, None, :, None] + across[None, :, None, :]).flatten(2, 3).flatten(0, 1)

    blocks = joined(row_tiles * _tiles(layout.columns), column_tiles)
    seen = joined(low_y**2, low_x**2) < layout.window**2
    full = joined(most_y**2, most_x**2) < layout.window**2
    beside = layout.key_tiles + torch.arange(layout.beside_blocks)
    whole = torch.arange(layout.beside_blocks) < layout.beside // BLOCK
    blocks = torch.cat([blocks, beside.expand(len(blocks), -1)], 1)
    seen = torch.cat([seen, torch.ones_like(beside, dtype=torch.bool).expand(len(blocks), -1)], 1)
    full = torch.cat([full, whole.expand(len(blocks), -1)], 1)
    partial, partial_count = _picked(blocks, seen & ~full)
    entire, full_count = _picked(blocks, full)
    return Table(partial, partial_count, entire, full_count)


def _axis(queries: int, keys: int, offset: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Least and most distance of each tile of queries to tiles of keys near it, and which.

    Returns:
        Three of (tiles of queries, candidates): the distances, far where a candidate does not
        exist; the most is far, too, where either tile is not full; and the tiles of keys.
    """
    first = torch.arange(_tiles(queries))[:, None] * TILE + offset
    last = first + TILE - 1
    reach = window - 1
    lowest = (first - reach).div(TILE, rounding_mode="floor")
    candidates = lowest + torch.arange((TILE - 1 + TILE - 1 + 2 * reach) // TILE + 1)
    key_first, key_last = candidates * TILE, candidates * TILE + TILE - 1
    there = (candidates >= 0) & (candidates < _tiles(keys))
    filled = (key_last < keys) & (last - offset < queries)
    low = torch.maximum(key_first - last, first - key_last).clamp(min=0)
    most = torch.maximum(key_last - first, last - key_first)
    return (
        low.masked_fill(~there, _FAR),
        most.masked_fill(~(there & filled), _FAR),
        candidates.clamp(0, _tiles(keys) - 1),
    )


def _picked(blocks: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted blocks of each row first, and their number."""
    order = wanted.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    count = wanted.sum(1)
    most = max(1, int(count.max()))
    return blocks.gather(1, order[:, :most]).to(torch.int32), count.to(torch.int32)


@lru_cache(maxsize=8)
def _block_mask(layout: Layout, device: torch.device) -> Any:
    """FlexAttention's form of the table and the mask; what it captures are tensors, so that
    another size needs no other kernel.
    """
    from torch.nn.attention.flex_attention import BlockMask

    with torch.inference_mode(False):
        made = table(layout)
        y_q, x_q = _places(layout.rows, layout.columns, layout.first_row)
        y_k, x_k = _places(layout.key_rows, layout.columns, 0)
        ends = layout.beside_blocks * BLOCK
        y_k, x_k = (F.pad(t, (0, ends)) for t in (y_k, x_k))
        always = torch.zeros(len(y_k), dtype=torch.bool)
        always[layout.key_tiles * BLOCK :][: layout.beside] = True
        y_k[layout.key_tiles * BLOCK :] = -_FAR
        window_squared = torch.tensor(layout.window**2, dtype=torch.int32)
        y_q, x_q, y_k, x_k, always, window_squared = (
            t.to(device) for t in (y_q, x_q, y_k, x_k, always, window_squared)
        )

    def seen(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        down, across = y_q[query] - y_k[key], x_q[query] - x_k[key]
        return (down * down + across * across < window_squared) | always[key]

    def on_device(t: Tensor) -> Tensor:
        return t[None, None].to(device)

    return BlockMask.from_kv_blocks(
        on_device(made.partial_count),
        on_device(made.partial),
        on_device(made.full_count),
        on_device(made.full),
        BLOCK_SIZE=BLOCK,
        mask_mod=seen,
        seq_lengths=(len(y_q), len(y_k)),
        compute_q_blocks=False,
    )


# Whether it runs


@lru_cache
def _tried(device: torch.device, dtype: torch.dtype, channels: int) -> Callable[..., Any] | None:
    """FlexAttention as it runs here; None where it does not."""
    problem: Any = "it is not there"
    for options in _KERNELS:
        try:
            from torch.nn.attention.flex_attention import flex_attention

            compiled = torch.compile(flex_attention, dynamic=True, fullgraph=True)

            def attend(
                *args: Any, _options: Any = options, _call: Any = compiled, **more: Any
            ) -> Any:
                return _call(*args, kernel_options=_options, **more)

            _check(attend, device, dtype, channels)
            return attend
        except Exception as error:  # whatever a compiler, a driver or a wrong result raises
            problem = error
    warnings.warn(
        f"FlexAttention does not run on {device} with {dtype} ({type(problem).__name__}: "
        f"{str(problem)[:300]}); CLEAR computes by tiles there, which is slower",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _check(
    attend: Callable[..., Any], device: torch.device, dtype: torch.dtype, channels: int
) -> None:
    """Compare with the way by tiles, on a grid that no tile divides."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(1, 2, *shape, channels, generator=generator).to(device, dtype)

    given = (drawn(20, 37), drawn(30, 37), drawn(30, 37), drawn(70), drawn(70))
    made = flex_attention_local(*given, 9, 8, channels**-0.5, attend=attend)
    wanted = blocked_attention(*given, 9, 8, channels**-0.5)
    torch.testing.assert_close(made, wanted, rtol=_TRIED_TOLERANCE, atol=_TRIED_TOLERANCE)
