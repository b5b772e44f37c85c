"""CLEAR's attention of image tokens, tile by tile: only rows and columns in reach are touched.

Shapes: B batch, H heads, R rows and C columns of tokens, h heads, n tiles, L queries and M keys
of a piece (`clear_tiles`), E further keys that every query sees, d channels per head.

The further keys (text, pooled) need no mask and are not copied for each tile: they are a part of
their own, and both parts are merged by the log-sum-exp of their scores.

Gradients: with the log-sum-exp of a whole row of scores at hand, the weights of any part of it
are exp(score - log-sum-exp), so the backward pass takes the same tiles again and keeps nothing
of them between.

References:
    FlashAttention, for the backward pass from log-sum-exps, https://arxiv.org/abs/2205.14135
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hirescli.attention.clear_tiles import pieces


def blocked_attention(
    q_BHRCd: Tensor, k_BHRCd: Tensor, v_BHRCd: Tensor,  # noqa: N803
    k_BHEd: Tensor, v_BHEd: Tensor, window: int, first_row: int, scale: float,  # noqa: N803
) -> Tensor:  # fmt: skip
    """Image queries to image keys in reach and to further keys, with gradients.

    As `clear.local_attention`, of tokens in rows and columns.
    """
    given = (q_BHRCd, k_BHRCd, v_BHRCd, k_BHEd, v_BHEd, window, first_row, scale)
    made: Tensor = _Blocked.apply(*given)  # type: ignore[no-untyped-call]
    return made


class _Blocked(torch.autograd.Function):
    """`blocked_attention` and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, q_BHRCd: Tensor, k_BHRCd: Tensor, v_BHRCd: Tensor,  # noqa: N803
        k_BHEd: Tensor, v_BHEd: Tensor, window: int, first_row: int, scale: float,  # noqa: N803
    ) -> Tensor:  # fmt: skip
        """(B, H, R, C, d) of the queries, in their dtype."""
        batch, heads, rows, columns, d = q_BHRCd.shape
        # Tokens outside heads, as modules go on with them.
        out_BHRCd = q_BHRCd.new_empty(batch, rows, columns, heads, d).permute(0, 3, 1, 2, 4)
        log_sums = q_BHRCd.new_empty((batch, heads, rows, columns, 1), dtype=_exact(q_BHRCd))
        for piece in pieces(q_BHRCd, k_BHRCd, window, first_row):
            q = piece.queries(q_BHRCd)
            out, log_sum = _part(q, piece.keys(k_BHRCd), piece.keys(v_BHRCd), piece.mask, scale)
            if k_BHEd.shape[2]:
                keys, values = (t[:, piece.heads, None] for t in (k_BHEd, v_BHEd))
                more, log_more = _part(q.flatten(2, 3)[:, :, None], keys, values, None, scale)
                out, log_sum = _merged(
                    out, log_sum, more.view(q.shape), log_more.view(log_sum.shape)
                )
            piece.put(out, out_BHRCd)
            piece.put(log_sum[..., None], log_sums)
        ctx.save_for_backward(q_BHRCd, k_BHRCd, v_BHRCd, k_BHEd, v_BHEd, out_BHRCd, log_sums)
        ctx.window, ctx.first_row, ctx.scale = window, first_row, scale
        return out_BHRCd

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradients of queries, keys, values, and of the further keys and values."""
        (grad_out,) = grads
        q_BHRCd, k_BHRCd, v_BHRCd, k_BHEd, v_BHEd, out, log_sums = ctx.saved_tensors
        exact = log_sums.dtype
        made = [
            t.new_zeros(t.shape, dtype=exact) for t in (q_BHRCd, k_BHRCd, v_BHRCd, k_BHEd, v_BHEd)
        ]
        sums = (grad_out.to(exact) * out.to(exact)).sum(-1, keepdim=True)
        for piece in pieces(q_BHRCd, k_BHRCd, ctx.window, ctx.first_row):
            own = [piece.queries(t).to(exact) for t in (q_BHRCd, grad_out, log_sums, sums)]
            keys, values = (piece.keys(t).to(exact) for t in (k_BHRCd, v_BHRCd))
            dq, dk, dv = _part_gradients(own, keys, values, piece.mask, ctx.scale)
            piece.add(dk, made[1])
            piece.add(dv, made[2])
            if k_BHEd.shape[2]:
                flat = [t.flatten(2, 3)[:, :, None] for t in own]
                keys, values = (t[:, piece.heads, None].to(exact) for t in (k_BHEd, v_BHEd))
                more, dk, dv = _part_gradients(flat, keys, values, None, ctx.scale)
                dq += more.view(dq.shape)
                made[3][:, piece.heads] += dk[:, :, 0]
                made[4][:, piece.heads] += dv[:, :, 0]
            piece.put(dq, made[0])
        given = (q_BHRCd, k_BHRCd, v_BHRCd, k_BHEd, v_BHEd)
        return *(m.to(t.dtype) for m, t in zip(made, given, strict=True)), None, None, None


def _exact(tensor: Tensor) -> torch.dtype:
    """What sums are kept in: float32 or better."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _part(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Softmax over one part of the keys, (B, h, n, L, d), and its log-sum-exps, (B, h, n, L)."""
    if q.device.type == "cpu":
        flat = (t.flatten(1, 2) for t in (q, k, v))
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *flat, 0.0, False, attn_mask=None if mask is None else mask[None, None], scale=scale
        )
        return out.view(q.shape), log_sum.view(q.shape[:-1])
    scores = _scores(q.to(_exact(q)), k.to(_exact(k)), mask, scale)
    log_sum = scores.logsumexp(-1)
    return (scores - log_sum[..., None]).exp() @ v.to(scores), log_sum


def _merged(out: Tensor, log_sum: Tensor, more: Tensor, log_more: Tensor) -> tuple[Tensor, Tensor]:
    log_total = torch.logaddexp(log_sum, log_more)
    weight = (log_more - log_total).exp()[..., None]
    return torch.lerp(out.to(weight), more.to(weight), weight), log_total


def _part_gradients(
    own: list[Tensor], k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What one part of the keys adds to the gradients of queries, keys and values.

    `own` is of the queries, (B, h, n, L, ...): themselves, the gradients of their outputs, their
    log-sum-exps over all keys, and the products of outputs and their gradients.
    """
    q, grad_out, log_sum, product = own
    weights = (_scores(q, k, mask, scale) - log_sum).exp_()
    dv = weights.mT @ grad_out
    dscores = (grad_out @ v.mT).sub_(product).mul_(weights).mul_(scale)
    return dscores @ k, dscores.mT @ q, dv


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = (q @ k.mT).mul_(scale)
    return scores if mask is None else scores.add_(mask)
