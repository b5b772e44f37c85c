"""Reductions: what several owners of rows fold and merge is what one folds alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import draw
from torch import Tensor

from hirescli.bands.reductions import Deviation, Moments, Reduction, Sum

ROWS = 12
REDUCTIONS: dict[str, Reduction] = {
    "moments": Moments(2),
    "deviation": Deviation((2, 3), True, 1, root=True, dtype=torch.float32),
    "sum": Sum(lambda bands: bands[0].sum((2, 3)), 3.0, torch.float32),
    "product": Sum(lambda b: b[0].flatten(2) @ b[0].flatten(2).mT, 1.0, torch.float32),
}


def folded(reduction: Reduction, x: Tensor, cuts: list[int]) -> Tensor:
    """As ranks would: each folds its own rows, then states are merged pairwise."""
    bounds = pairwise([0, *sorted(cuts), ROWS])
    states = [reduction.partial([x[:, :, lo:hi]]) for lo, hi in bounds]
    while len(states) > 1:
        pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
        states = [reduction.merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return reduction.finish(states[0])


@pytest.mark.parametrize("name", REDUCTIONS)
@given(cuts=st.lists(st.integers(1, ROWS - 1), min_size=1, max_size=5, unique=True))
def test_states_merge_in_any_grouping(name: str, cuts: list[int]) -> None:
    x = draw((1, 4, ROWS, 5), 1) * 3 + 2
    alone = folded(REDUCTIONS[name], x, [])
    torch.testing.assert_close(folded(REDUCTIONS[name], x, cuts), alone)
