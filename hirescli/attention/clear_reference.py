"""CLEAR's attention by a dense mask, as its definition reads: for tests, at small sizes.

Shapes: B batch, H heads, N tokens of the sequence, P pooled tokens, d channels per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hirescli.attention.clear_geometry import Geometry


def visible(geometry: Geometry) -> Tensor:
    """Which keys each query sees: (N, N + P), bool; the pooled keys come last."""
    tokens, image, text = geometry.tokens, geometry.image_span, geometry.text_span
    seen = torch.zeros(tokens, tokens + geometry.pooled_tokens, dtype=torch.bool)
    y, x = torch.meshgrid(
        torch.arange(geometry.rows), torch.arange(geometry.columns), indexing="ij"
    )
    y, x = y.flatten(), x.flatten()
    distance_squared = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    seen[image, image] = distance_squared < geometry.window**2
    seen[image, text] = True
    seen[image, tokens:] = True
    seen[text, :tokens] = True
    return seen


def dense_clear_attention(
    q_BHNd: Tensor,  # noqa: N803
    k_BHNd: Tensor,  # noqa: N803
    v_BHNd: Tensor,  # noqa: N803
    geometry: Geometry,
    *,
    scale: float | None = None,
    spatial_weight: Tensor | None = None,
) -> Tensor:
    """As `clear_attention`, in time and memory that are quadratic in the tokens."""
    if geometry.down_factor > 1:
        assert spatial_weight is not None
        k_BHNd, v_BHNd = (
            torch.cat([t, _pooled(t, geometry, spatial_weight)], 2) for t in (k_BHNd, v_BHNd)
        )
    scale = 1 / math.sqrt(q_BHNd.shape[-1]) if scale is None else scale
    scores = torch.einsum("bhnd,bhmd->bhnm", q_BHNd, k_BHNd) * scale
    scores = scores.masked_fill(~visible(geometry).to(scores.device), -math.inf)
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v_BHNd)


def _pooled(t_BHNd: Tensor, geometry: Geometry, spatial_weight: Tensor) -> Tensor:  # noqa: N803
    """Each square of image tokens, summed with its weights, one after the other."""
    f, columns = geometry.down_factor, geometry.columns
    image = t_BHNd[:, :, geometry.image_span]
    weight_ff = spatial_weight.reshape(f, f).to(t_BHNd.dtype)
    squares = []
    for y in range(0, geometry.rows, f):
        for x in range(0, columns, f):
            terms = [
                weight_ff[i, j] * image[:, :, (y + i) * columns + x + j]
                for i in range(f)
                for j in range(f)
            ]
            squares.append(torch.stack(terms).sum(0))
    return torch.stack(squares, 2)
