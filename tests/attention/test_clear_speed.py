"""CLEAR's attention grows with the tokens, and is quicker than full attention.

Processor time of one thread, which other programs change little; one of FLUX's 24 heads, which
all take the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.attention.clear import clear_attention
from hirescli.attention.clear_geometry import Geometry
from hirescli.evaluation.components import threads_set

TEXT_TOKENS = 512


def drawn(side: int) -> tuple[Tensor, ...]:
    tokens = side * side + TEXT_TOKENS
    return tuple(torch.randn(1, 1, tokens, 128) for _ in range(3))


def best(call: Callable[[], object], times: int) -> float:
    spent = []
    for _ in range(times):
        start = time.thread_time()
        call()
        spent.append(time.thread_time() - start)
    return min(spent)


@pytest.mark.slow
@torch.no_grad()
def test_time_per_token_stays_and_beats_full_attention() -> None:
    with threads_set(1):
        seconds = {}
        for side in (64, 128):
            q, k, v = drawn(side)
            geometry = Geometry(side, side, 8, 1, TEXT_TOKENS)
            clear_attention(q, k, v, geometry)
            seconds[side] = best(lambda: clear_attention(q, k, v, geometry), 3)  # noqa: B023
        full = best(lambda: F.scaled_dot_product_attention(q, k, v), 1)
    assert seconds[128] / 4 <= 1.25 * seconds[64]
    assert full >= 4 * seconds[128]
