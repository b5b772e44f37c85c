"""CLEAR: attention of image tokens to their neighbourhood, in linear time.

Shapes: B batch, H heads, N tokens of text and image, R rows and C columns of image tokens,
E further keys, P pooled tokens, d channels per head.

For queries q, keys k and values v of one head, after norms and rotary embeddings:

    image query n:  softmax over m of scale q_n k_m^T, where m is a text token, an image token at
                    a squared distance below window^2 from n, or a pooled token
    text query n:   the same, where m is a text token or an image token
    pooled token:   sum over a square of f x f image tokens of spatial_weight_ij k_ij, and v_ij

There are three ways to compute it with one meaning: `clear_reference` by a dense mask, for tests,
`clear_blocked` by tiles, on any device and where gradients are asked for, and `clear_flex` by
FlexAttention, on CUDA where that runs.

References:
    CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers Up,
    https://arxiv.org/abs/2412.16112
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from hirescli.attention.clear_blocked import blocked_attention
from hirescli.attention.clear_flex import flex_attention_local, flex_works
from hirescli.attention.clear_geometry import Geometry

# Text and image tokens of a 1024 px picture, which FLUX and the published weights were trained
# with: proportional attention is 1/sqrt(d) there.
TRAINED_TOKENS = 64**2 + 512
_POOLED_SHARE = 10  # what n is multiplied by where there are pooled keys, as published
# Kernels count elements in 32 bits, of tensors with more of them some read what is not theirs.
_MOST_ELEMENTS = 2**31 - 1


def clear_attention(
    q_BHNd: Tensor,  # noqa: N803
    k_BHNd: Tensor,  # noqa: N803
    v_BHNd: Tensor,  # noqa: N803
    geometry: Geometry,
    *,
    scale: float | None = None,
    spatial_weight: Tensor | None = None,
) -> Tensor:
    """CLEAR's attention of one sequence, with gradients, in time linear in the image tokens.

    With a down factor f it has a part that is not linear: N / f^2 pooled keys for each query.

    Args:
        q_BHNd: Queries (B, H, N, d), text and image as `geometry` says.
        k_BHNd: Keys, likewise.
        v_BHNd: Values, likewise.
        geometry: Of the sequence.
        scale: Of scores; None: 1/sqrt(d).
        spatial_weight: (1, 1, 1, f, 1, f, 1), what a pooled key takes of each of its tokens;
            asked for where the down factor f is above 1.

    Returns:
        (B, H, N, d) in the dtype of the queries.
    """
    given = (q_BHNd, k_BHNd, v_BHNd)
    if has_torch_function(given):
        made: Tensor = handle_torch_function(
            clear_attention, given, *given, geometry, scale=scale, spatial_weight=spatial_weight
        )
        return made
    assert q_BHNd.shape[2] == geometry.tokens, "the geometry is another sequence's"
    if q_BHNd.device.type == "meta":
        return torch.empty_like(q_BHNd)
    scale = 1 / math.sqrt(q_BHNd.shape[-1]) if scale is None else scale
    if q_BHNd.numel() <= _MOST_ELEMENTS:
        return _joint(*given, geometry, scale, spatial_weight)
    step = max(1, _MOST_ELEMENTS // (q_BHNd.numel() // q_BHNd.shape[1]))
    groups = [slice(head, head + step) for head in range(0, q_BHNd.shape[1], step)]
    parts = ([t[:, heads].contiguous() for t in given] for heads in groups)
    return torch.cat([_joint(q, k, v, geometry, scale, spatial_weight) for q, k, v in parts], 1)


def _joint(
    q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, scale: float, weight: Tensor | None
) -> Tensor:
    image, text = geometry.image_span, geometry.text_span
    k_image, v_image = k[:, :, image], v[:, :, image]
    beside = [(k[:, :, text], v[:, :, text])]
    if geometry.down_factor > 1:
        assert weight is not None, "pooled keys need a spatial_weight"
        columns = geometry.columns
        beside.append((pool(k_image, columns, weight), pool(v_image, columns, weight)))
    k_beside, v_beside = (torch.cat(parts, 2) for parts in zip(*beside, strict=True))
    out = local_attention(
        q[:, :, image], k_image, v_image, k_beside, v_beside,
        columns=geometry.columns, window=geometry.window, scale=scale,
    )  # fmt: skip
    if not geometry.text_tokens:
        return out
    out_text = F.scaled_dot_product_attention(q[:, :, text], k, v, scale=scale)
    return torch.cat([out_text, out] if geometry.text_first else [out, out_text], 2)


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_beside: Tensor,
    v_beside: Tensor,
    *,
    columns: int,
    window: int,
    scale: float,
    first_row: int = 0,
) -> Tensor:
    """Image queries to the image keys in reach, and to further keys that all of them see.

    The queries may be a band of rows, the keys that band with a halo of window - 1 rows where
    the image has them.

    Args:
        q: Queries (B, H, R C, d) of whole rows.
        k: Keys of whole rows that hold those of the queries, and all in reach of them.
        v: Values, likewise.
        k_beside: Further keys (B, H, E, d): text, then pooled ones. E may be 0.
        v_beside: Their values.
        columns: C of the image.
        window: In tokens.
        scale: Of scores.
        first_row: Row of the keys that is the first row of the queries.

    Returns:
        As `q`.
    """
    q, k, v = (t.unflatten(2, (-1, columns)) for t in (q, k, v))
    given = (q, k, v, k_beside, v_beside)
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    flex = not learns and flex_works(q.device, q.dtype, q.shape[-1])
    attend = flex_attention_local if flex else blocked_attention
    return attend(*given, window, first_row, scale).flatten(2, 3)


def pool(t: Tensor, columns: int, spatial_weight: Tensor) -> Tensor:
    """Each square of f x f tokens, weighted and summed: the pooled keys, or values.

    Args:
        t: Image tokens (B, H, R C, d) of whole rows; f divides R and C.
        columns: C of the image.
        spatial_weight: (1, 1, 1, f, 1, f, 1).

    Returns:
        (B, H, R C / f^2, d).
    """
    f = spatial_weight.shape[3]
    squares = t.unflatten(2, (-1, f, columns // f, f))
    pooled: Tensor = (squares * spatial_weight.to(t)).sum((3, 5))
    return pooled.flatten(2, 3)


def proportional_scale(channels: int, tokens: int, *, pooled: bool = False) -> float:
    """The scale of scores where there are other than the trained number of tokens.

    sqrt(log_T(n) / d): more keys flatten a softmax, a larger scale sharpens it again.

    Args:
        channels: Of a head, d.
        tokens: Of the sequence, n, at least 2.
        pooled: Whether there are pooled keys: then 10 n stands for n.
    """
    n = tokens * (_POOLED_SHARE if pooled else 1)
    return math.sqrt(math.log(n, TRAINED_TOKENS) / channels)
