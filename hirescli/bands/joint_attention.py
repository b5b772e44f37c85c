"""Softmax attention of a sequence of two parts: each token of text and picture to all of both.

Shapes: queries (1, H, N, d) of N picture tokens and (1, H, T, d) of T text tokens, keys and
values likewise. A picture's queries go over the text's keys and then over all bands of its own.
A text's queries are few, so that they go along with every band of keys: a reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.bands.attention import gather, merge_parts, merged, part_of
from hirescli.bands.joint import Joint, Part, on_sequences
from hirescli.bands.record import record_local
from hirescli.bands.sums import record_reduction
from hirescli.bands.tensor import Node, unknown

# Of each number while two parts are merged: both, in float32, and what is made of them.
_MERGING_BYTES = 12


def _numbers(part: Part) -> int:
    return part.shape.numel()


@dataclass(frozen=True)
class KeySum:
    """Attention of some queries to all rows of keys, and the log-sum-exp of their scores.

    The state of some rows is (1, H, T, d + 1), float32: the mean of their values under the
    softmax of their scores alone, and behind it the logarithm of its denominator.

    Attributes:
        scale: Of the scores; None: the root of d.
        query: (1, H, T, d), where it stands ready; None: it is read with the rows.
    """

    scale: float | None
    query: Tensor | None

    def partial(self, bands: Sequence[Tensor]) -> Tensor:
        """Of a band of keys and values, and the queries."""
        key, value, *given = bands
        query = given[0] if self.query is None else self.query
        made, log_sum = part_of(query, key, value, self.scale)
        return torch.cat([made.float(), log_sum.unsqueeze(-1)], -1)

    def merge(self, first: Tensor, second: Tensor) -> Tensor:
        """Weighted by the exponentials of their log-sum-exps."""
        made, log_sum = merge_parts(*_apart(first), *_apart(second))
        return torch.cat([made, log_sum.unsqueeze(-1)], -1)

    def finish(self, state: Tensor) -> Tensor:
        """The state itself: the text's own keys come to it."""
        return state


def _apart(state: Tensor) -> tuple[Tensor, Tensor]:
    return state[..., :-1], state[..., -1]


@on_sequences(F.scaled_dot_product_attention)
def attention(
    func: Any, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Joint:  # fmt: skip
    """Attention of both parts to both parts."""
    if attn_mask is not None or dropout_p or is_causal or enable_gqa:
        raise unknown("scaled_dot_product_attention", "of text and picture with a mask or options")
    if not all(isinstance(t, Joint) and t.dim == 2 for t in (query, key, value)):
        raise unknown("scaled_dot_product_attention", "needs sequences (B, heads, tokens, d)")
    text = text_attention(query.text, key, value, scale)
    return query.beside(_image_attention(query.image, key, value, scale), text)  # type: ignore[no-any-return]


def _image_attention(query: Node, key: Joint, value: Joint, scale: float | None) -> Node:
    def attend(
        rows: Tensor, keys: Any, values: Any, text_key: Tensor, text_value: Tensor
    ) -> Tensor:
        pairs = chain([(text_key, text_value)], zip(keys(), values(), strict=True))
        return merged(rows, pairs, scale)

    assert query.grid is not None
    tokens_px = query.shape[2] / (query.grid.rows * query.grid.width)
    flops = 4.0 * query.shape[1] * query.shape[3] * tokens_px
    return record_local(
        attend, (query, gather(key.image), gather(value.image), key.text, value.text), {},
        name="attention", shape=query.shape, dtype=query.dtype, grid=query.grid, anchor=True,
        px_flops=flops * key.text.shape[2], px_key_flops=flops,
        px_scratch_bytes=query.shape[1] * query.shape[3] * tokens_px * _MERGING_BYTES,
    )  # fmt: skip


def text_attention(query: Part, key: Joint, value: Joint, scale: float | None) -> Node:
    """Attention of text queries to the keys of both parts, (1, H, T, d)."""
    image = key.image
    assert image.grid is not None
    whole = query if isinstance(query, Tensor) else None
    inputs = [key.image, value.image, *([] if isinstance(query, Tensor) else [query])]
    each_key = 4.0 * query.shape[1] * query.shape[3] * query.shape[2]
    folded = record_reduction(
        inputs, KeySum(scale, whole),
        name="attention", shape=torch.Size((*query.shape[:3], query.shape[3] + 1)),
        dtype=torch.float32,
        px_flops=each_key * image.shape[2] / (image.grid.rows * image.grid.width),
        scratch_bytes=_numbers(query) * _MERGING_BYTES,
    )  # fmt: skip

    def join(state: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made, _ = merge_parts(*_apart(state), *part_of(q, k, v, scale))
        return made.to(q.dtype)

    return record_local(
        join, (folded, query, key.text, value.text), {},
        name="attention", shape=query.shape, dtype=query.dtype, grid=None,
        px_flops=each_key * key.text.shape[2],
        scratch_bytes=_numbers(query) * _MERGING_BYTES,
    )  # fmt: skip
