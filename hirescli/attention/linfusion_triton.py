"""Linear attention on CUDA in two fused kernels: fold the keys and values, apply to queries.

`linfusion.plain_linear_attention` says what is computed and is the oracle. There, feature maps
and scaled copies of queries, keys and values pass through memory in float32; here each token
is read once in its own dtype, and what it becomes stays in registers. Sums are float32.

Needs Triton: import this module only where `linfusion.linear_attention` found it to work.

Shapes: B batch, H heads, N tokens, d channels per head, S parts that the tokens are split
into. A kernel's channels are padded to a power of two with zeros *after* the feature map,
since phi(0) = 1. Programs lie on the grid's first axis, the only one that holds more than
65,535. Offsets of tokens are int64: at 16384 px, N * C passes 2**31.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from hirescli.attention.linfusion import EPSILON

# A part is folded by one program, token block after token block, so that parts that do not
# depend on the device give the same bytes on every run; 256 parts of 10 heads fill any card.
_MOST_PARTS = 256
_LEAST_TOKENS = 512


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _phi(t):  # type: ignore[no-untyped-def]
    """elu(t) + 1; the clamp keeps the branch not taken finite."""
    return tl.where(t > 0, t + 1, tl.exp(tl.minimum(t, 0)))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def fold_kernel(  # type: ignore[no-untyped-def]  # noqa: D417
    k, v, kv_parts, k_parts, tokens, part_tokens, parts, heads,
    k_b, k_h, k_n, v_b, v_h, v_n,
    d: tl.constexpr, d_pad: tl.constexpr, e_block: tl.constexpr, n_block: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """Sum phi(k)^T v and phi(k) over one part of one head's tokens, for some columns of v.

    Args:
        k, v: (B, H, N, d) with strides for B, H, N; the last is 1.
        kv_parts, k_parts: Results (B*H, S, d, d) and (B*H, S, d), float32, dense.
    """
    e_blocks: tl.constexpr = (d + e_block - 1) // e_block
    program = tl.program_id(0)
    e_index = program % e_blocks
    part = (program // e_blocks) % parts
    head = program // e_blocks // parts  # of all B*H
    k += (head // heads).to(tl.int64) * k_b + (head % heads).to(tl.int64) * k_h
    v += (head // heads).to(tl.int64) * v_b + (head % heads).to(tl.int64) * v_h
    d_range = tl.arange(0, d_pad)
    e_range = e_index * e_block + tl.arange(0, e_block)
    kv = tl.zeros([d_pad, e_block], tl.float32)
    k_sum = tl.zeros([d_pad], tl.float32)
    for start in range(0, part_tokens, n_block):
        n = part.to(tl.int64) * part_tokens + start + tl.arange(0, n_block)
        k_mask = (n < tokens)[:, None] & (d_range < d)[None, :]
        v_mask = (n < tokens)[:, None] & (e_range < d)[None, :]
        k_tile = tl.load(k + n[:, None] * k_n + d_range[None, :], k_mask, 0).to(tl.float32)
        v_tile = tl.load(v + n[:, None] * v_n + e_range[None, :], v_mask, 0).to(tl.float32)
        phi_k = tl.where(k_mask, _phi(k_tile), 0)
        kv += tl.dot(tl.trans(phi_k), v_tile, input_precision=precision)
        k_sum += tl.sum(phi_k, 0)
    place = head.to(tl.int64) * parts + part
    kv_offsets = (place * d + d_range)[:, None] * d + e_range[None, :]
    tl.store(kv_parts + kv_offsets, kv, (d_range < d)[:, None] & (e_range < d)[None, :])
    if e_index == 0:
        tl.store(k_parts + place * d + d_range, k_sum, d_range < d)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def apply_kernel(  # type: ignore[no-untyped-def]  # noqa: D417
    q, kv, mean_k, out, tokens, heads,
    q_b, q_h, q_n, out_b, out_h, out_n, epsilon,
    d: tl.constexpr, d_block: tl.constexpr, e_block: tl.constexpr, n_block: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """phi(q) kv / (phi(q) mean_k + epsilon) for a block of tokens and some columns.

    Args:
        q, out: (B, H, N, d) with strides for B, H, N; the last is 1.
        kv, mean_k: (B*H, d, d) and (B*H, d), float32, dense.
    """
    e_blocks: tl.constexpr = (d + e_block - 1) // e_block
    n_blocks = tl.cdiv(tokens, n_block)
    program = tl.program_id(0)
    e_range = (program % e_blocks) * e_block + tl.arange(0, e_block)
    n = ((program // e_blocks) % n_blocks).to(tl.int64) * n_block + tl.arange(0, n_block)
    head = (program // e_blocks // n_blocks).to(tl.int64)  # of all B*H
    q += (head // heads) * q_b + (head % heads) * q_h
    out += (head // heads) * out_b + (head % heads) * out_h
    kv += head * d * d
    mean_k += head * d
    weighted = tl.zeros([n_block, e_block], tl.float32)
    total = tl.zeros([n_block], tl.float32)
    for first in range(0, d, d_block):
        d_range = first + tl.arange(0, d_block)
        q_mask = (n < tokens)[:, None] & (d_range < d)[None, :]
        kv_mask = (d_range < d)[:, None] & (e_range < d)[None, :]
        q_tile = tl.load(q + n[:, None] * q_n + d_range[None, :], q_mask, 0).to(tl.float32)
        phi_q = tl.where(q_mask, _phi(q_tile), 0)
        kv_tile = tl.load(kv + d_range[:, None] * d + e_range[None, :], kv_mask, 0)
        mean_tile = tl.load(mean_k + d_range, d_range < d, 0)
        weighted += tl.dot(phi_q, kv_tile, input_precision=precision)
        total += tl.sum(phi_q * mean_tile[None, :], 1)
    made = weighted / (total + epsilon)[:, None]
    out_mask = (n < tokens)[:, None] & (e_range < d)[None, :]
    out_offsets = n[:, None] * out_n + e_range[None, :]
    tl.store(out + out_offsets, made.to(out.dtype.element_ty), out_mask)


def fused_linear_attention(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:  # noqa: N803
    """As `linfusion.linear_attention`; no gradients.

    Args:
        q_BHNd: Queries (B, H, N, d), float32, float16 or bfloat16; d at most 256.
        k_BHNd: Keys (B, H, N, d), the same.
        v_BHNd: Values (B, H, N, d), the same.

    Returns:
        (B, H, N, d) in the dtype of the values; in memory (B, N, H, d), as projections read it.
    """
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q_BHNd, k_BHNd, v_BHNd))
    batch, heads, tokens, d = q.shape
    with torch.cuda.device(q.device) if q.is_cuda else nullcontext():
        kv, mean_k = _fold(k, v)
        out = torch.empty(batch, tokens, heads, d, dtype=v.dtype, device=v.device)
        out = out.transpose(1, 2)
        e_block, n_block = _column_block(d), 64
        programs = batch * heads * triton.cdiv(tokens, n_block) * triton.cdiv(d, e_block)
        apply_kernel[(programs,)](
            q, kv, mean_k, out, tokens, heads, *q.stride()[:3], *out.stride()[:3], EPSILON,
            d=d, d_block=32, e_block=e_block, n_block=n_block, precision=_precision(q.device),
        )  # fmt: skip
    return out


def _fold(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The state of all keys and values: kv (B*H, d, d) and mean_k (B*H, d), float32."""
    batch, heads, tokens, d = k.shape
    d_pad = max(16, triton.next_power_of_2(d))
    e_block, n_block = _column_block(d), 64 if d_pad <= 64 else 32
    part_tokens = max(_LEAST_TOKENS, triton.cdiv(tokens, _MOST_PARTS))
    part_tokens = n_block * triton.cdiv(part_tokens, n_block)
    parts = triton.cdiv(tokens, part_tokens)
    kv_parts = torch.empty(batch * heads, parts, d, d, dtype=torch.float32, device=k.device)
    k_parts = torch.empty(batch * heads, parts, d, dtype=torch.float32, device=k.device)
    fold_kernel[(batch * heads * parts * triton.cdiv(d, e_block),)](
        k, v, kv_parts, k_parts, tokens, part_tokens, parts, heads,
        *k.stride()[:3], *v.stride()[:3],
        d=d, d_pad=d_pad, e_block=e_block, n_block=n_block, precision=_precision(k.device),
        num_warps=4 if d_pad <= 64 else 8,
    )  # fmt: skip
    return kv_parts.sum(1) / tokens, k_parts.sum(1) / tokens


def _column_block(d: int) -> int:
    """Columns of v per program: all of a narrow head; of a wide one what registers hold."""
    return int(max(16, triton.next_power_of_2(d))) if d <= 64 else 32


def _precision(device: torch.device) -> str:
    """How matrix units multiply float32: as three products of TF32, which loses nothing that
    float32 sums keep; exactly where there are no such units.
    """
    modern = (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
    return "tf32x3" if modern else "ieee"
