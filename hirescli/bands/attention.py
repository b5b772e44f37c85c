"""Softmax attention in bands: exact, by merging what each band of keys gives.

Shapes: queries (1, H, N, d), keys and values (1, H, M, d). For each query the softmax over all
keys is the mean of the softmaxes over parts of them, weighted by the exponential of each part's
log-sum-exp.

References:
    Online normalizer calculation for softmax, https://arxiv.org/abs/1805.02867
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.bands.record import handles, infer, record_local
from hirescli.bands.tensor import Grid, Node, Span, module_path, unknown
from hirescli.planning.trace import Pool

# Above so many keys the queries attend to averages of them, where that is allowed.
MOST_POOLED_KEYS = 512**2
_pooling: list[bool] = []


@contextmanager
def pooling_keys(allowed: bool) -> Iterator[None]:
    """Whether self-attention that is recorded may pool its keys above `MOST_POOLED_KEYS`."""
    _pooling.append(allowed)
    try:
        yield
    finally:
        _pooling.pop()


@handles(F.scaled_dot_product_attention)
def attention(
    func: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Node:  # fmt: skip
    """Attention of banded queries to resident keys, or to all rows of banded ones."""
    if dropout_p or is_causal or enable_gqa:
        raise unknown("scaled_dot_product_attention", "with dropout, causality or grouped heads")
    if not isinstance(query, Node) or query.grid is None or query.grid.dim != 2:
        raise unknown("scaled_dot_product_attention", "needs queries (B, heads, tokens, d)")
    (meta,) = infer(func, (query, key, value), {})
    px = query.grid.rows * query.grid.width
    tokens_px = query.shape[2] / px
    channels = query.shape[1] * query.shape[3]
    if not (isinstance(key, Node) and key.grid is not None):
        if attn_mask is not None and attn_mask.shape[-2] != 1:
            raise unknown("scaled_dot_product_attention", "with a mask that differs by row")
        return record_local(
            lambda q, k, v, m: func(q, k, v, attn_mask=m, scale=scale),
            (query, key, value, attn_mask), {},
            name="attention", shape=meta.shape, dtype=meta.dtype, grid=query.grid, anchor=True,
            px_flops=4.0 * channels * key.shape[2] * tokens_px,
        )  # fmt: skip
    if attn_mask is not None:
        raise unknown("scaled_dot_product_attention", "of rows to rows with a mask")
    return _self_attention(query, key, value, scale, meta)


def _self_attention(
    query: Node, key: Node, value: Node, scale: float | None, meta: Tensor
) -> Node:
    assert query.grid is not None
    if _pooling and _pooling[-1]:
        key, value = _pooled(key), _pooled(value)

    def kernel(bands: list[Any], _: Span) -> Tensor:
        rows, keys, values = bands
        return merged(rows, zip(keys(), values(), strict=True), scale)

    tokens_px = query.shape[2] / (query.grid.rows * query.grid.width)
    return record_local(
        None, (query, gather(key), gather(value)), {},
        name="attention", shape=meta.shape, dtype=meta.dtype, grid=query.grid, kernel=kernel,
        anchor=True, px_key_flops=4.0 * query.shape[1] * query.shape[3] * tokens_px,
    )  # fmt: skip


def gather(x: Node) -> Node:
    """All rows of a value, for attention."""
    return Node(
        kind="gather", name="gather", parents=(x,), shape=x.shape, dtype=x.dtype,
        device=x.device, module=module_path(),
    )  # fmt: skip


def _pooled(x: Node) -> Node:
    """Tokens (1, H, N, d) averaged in squares of pixels; the same where they are few."""
    assert x.grid is not None
    grid, pool = x.grid, Pool(MOST_POOLED_KEYS)
    factor = pool.factor(grid.rows, grid.width)
    down, across = pool.window(grid.rows, factor), pool.window(grid.width, factor)
    rows, width = down.size_out(grid.rows), across.size_out(grid.width)

    def kernel(bands: list[Any], span: Span) -> Tensor:
        (band,) = bands
        if factor == 1:
            return band  # type: ignore[no-any-return]
        _, heads, _, d = band.shape
        squares = F.pad(band.unflatten(2, (-1, grid.width)), (0, 0, 0, across.after))
        squares = squares.view(1, heads, span.rows, factor, width, factor, d)
        counts = _in_square(span.lo, span.hi, grid.rows, factor)[:, None] * _in_square(
            0, width, grid.width, factor
        )
        sums = squares.sum((3, 5), dtype=torch.float32)
        return (sums / counts[:, :, None].to(sums)).to(band.dtype).flatten(2, 3)

    return record_local(
        None, (x,), {},
        name="pool", shape=torch.Size((*x.shape[:2], rows * width, x.shape[3])), dtype=x.dtype,
        grid=Grid(rows, width, grid.level / factor, 2), kernel=kernel, reach=pool,
    )  # fmt: skip


def _in_square(lo: int, hi: int, size: int, factor: int) -> Tensor:
    """Pixels along one side of squares lo to hi; the last may be cut off."""
    return (size - torch.arange(lo, hi) * factor).clamp(max=factor)


def merged(query: Tensor, pairs: Any, scale: float | None) -> Tensor:
    """Attention of a band of queries to all bands of keys and values, one after the other."""
    total: Tensor | None = None
    log_total: Tensor | None = None
    pending: list[tuple[Tensor, Tensor]] = []
    for pair in pairs:
        pending.append(pair)
        if len(pending) == 1 and total is None:
            continue
        for k, v in pending:
            total, log_total = merge_parts(total, log_total, *part_of(query, k, v, scale))
        pending.clear()
    if total is None:  # one band holds all keys
        ((k, v),) = pending
        return F.scaled_dot_product_attention(query, k, v, scale=scale)
    return total.to(query.dtype)


def merge_parts(
    total: Tensor | None, log_total: Tensor | None, part: Tensor, log_part: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys, each with the log-sum-exp of its scores, as one to both."""
    if total is None or log_total is None:
        return part.float(), log_part
    log_sum = torch.logaddexp(log_total, log_part)
    weight = (log_part - log_sum).exp().unsqueeze(-1)
    return torch.lerp(total, part.float(), weight), log_sum


def part_of(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attention to one band of keys, and the log-sum-exp of its scores, (1, H, N) float32."""
    if query.device.type == "cpu":
        made, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, scale=scale
        )
    elif query.device.type == "cuda":
        made, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, scale=scale
        )
        log_sum = log_sum[..., : query.shape[2]]  # it comes padded
    else:
        scores = query.float() @ key.float().mT * (scale or query.shape[-1] ** -0.5)
        log_sum = scores.logsumexp(-1)
        made = (scores - log_sum.unsqueeze(-1)).exp() @ value.float()
    return made, log_sum.float()
