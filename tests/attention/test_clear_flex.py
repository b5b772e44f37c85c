"""The blocks that FlexAttention is given, and its meaning, uncompiled on a CPU."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hirescli.attention import clear_flex
from hirescli.attention.clear_blocked import blocked_attention
from hirescli.attention.clear_flex import BLOCK, TILE, Layout, flex_attention_local, table


def seen_by_queries(layout: Layout) -> tuple[Tensor, Tensor]:
    """Which keys in blocks each query in tiles sees, from the definition; and which queries are
    real.
    """

    def places(rows: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
        down, across = -(-rows // TILE), -(-layout.columns // TILE)
        tile_y, tile_x, y, x = (
            t.flatten()
            for t in torch.meshgrid(
                torch.arange(down), torch.arange(across), torch.arange(TILE), torch.arange(TILE),
                indexing="ij",
            )
        )  # fmt: skip
        y, x = tile_y * TILE + y, tile_x * TILE + x
        return y + first, x, (y < rows) & (x < layout.columns)

    y_q, x_q, real_q = places(layout.rows, layout.first_row)
    y_k, x_k, real_k = places(layout.key_rows, 0)
    near = (y_q[:, None] - y_k) ** 2 + (x_q[:, None] - x_k) ** 2 < layout.window**2
    beside = torch.arange(layout.beside_blocks * BLOCK) < layout.beside
    return torch.cat([near & real_k, beside.expand(len(y_q), -1)], 1), real_q


@settings(max_examples=30, deadline=None)
@example(Layout(20, 37, 30, 8, 70, 9))
@example(Layout(8, 8, 8, 0, 0, 8))
@example(Layout(40, 40, 40, 0, 64, 32))
@given(
    st.builds(
        lambda rows, columns, above, below, beside, window: Layout(
            rows, columns, rows + above + below, above, beside, window
        ),
        st.integers(1, 30), st.integers(1, 30), st.integers(0, 20), st.integers(0, 20),
        st.sampled_from([0, 1, 64, 70]), st.integers(1, 34),
    )
)  # fmt: skip
def test_blocks_are_those_that_are_seen(layout: Layout) -> None:
    seen, real = seen_by_queries(layout)
    blocks, made = layout.key_tiles + layout.beside_blocks, table(layout)
    for tile in range(len(made.partial)):
        rows = slice(tile * BLOCK, (tile + 1) * BLOCK)
        own = seen[rows].view(BLOCK, blocks, BLOCK)
        partial = made.partial[tile, : made.partial_count[tile]].tolist()
        full = made.full[tile, : made.full_count[tile]].tolist()
        assert len({*partial, *full}) == len(partial) + len(full)
        needed = own[real[rows]].any(2).any(0).nonzero().flatten().tolist()
        assert {*needed} <= {*partial, *full}
        assert all(own[:, block].all() for block in full)


def test_tiles_leave_out_most_keys() -> None:
    """Window 8 in raster blocks of 128 tokens touches 3,800 and more of them."""
    made = table(Layout(128, 128, 128, 0, 512, 8))
    touched = (made.partial_count + made.full_count).max() * BLOCK
    assert touched == 9 * BLOCK + 512


def test_tables_grow_with_the_tokens() -> None:
    small, large = (table(Layout(side, 64, side, 0, 0, 8)) for side in (64, 256))
    assert large.partial.numel() == 4 * small.partial.numel()


@pytest.mark.parametrize("beside", [0, 70])
def test_its_meaning_is_that_of_tiles(beside: int) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(2, 2, *shape, 16, generator=generator)

    tensors = (drawn(20, 37), drawn(30, 37), drawn(30, 37), drawn(beside), drawn(beside))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled here
        made = flex_attention_local(*tensors, 9, 8, 0.3, attend=flex_attention)
    wanted = blocked_attention(*tensors, 9, 8, 0.3)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def test_where_it_does_not_run_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(clear_flex, "_check", broken)
    clear_flex._tried.cache_clear()
    with pytest.warns(RuntimeWarning, match="no compiler"):
        assert clear_flex._tried(torch.device("cpu"), torch.float32, 16) is None
    clear_flex._tried.cache_clear()


def test_it_is_for_cuda() -> None:
    assert not clear_flex.flex_works(torch.device("cpu"), torch.float32, 16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_runs_on_a_gpu() -> None:
    assert clear_flex.flex_works(torch.device("cuda"), torch.bfloat16, 128)
