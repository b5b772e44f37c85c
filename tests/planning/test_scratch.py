"""What CLEAR's attention is counted with: bounded, whatever the picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hirescli.planning.scratch import PIECE_BYTES, TILE, clear_scratch_bytes

windows = st.integers(1, 64)
itemsizes = st.sampled_from([2, 4])


@given(width=st.integers(1, 2**14), heads=st.integers(1, 64), window=windows, itemsize=itemsizes)
def test_it_grows_with_the_picture_up_to_a_bound(
    width: int, heads: int, window: int, itemsize: int
) -> None:
    given = {"px": 128.0 * heads, "itemsize": itemsize, "reach": 2 * window - 1}
    own, wider = (clear_scratch_bytes(width=n, **given) for n in (width, 2 * width))  # type: ignore[arg-type]
    assert 0 < own <= wider <= 6 * PIECE_BYTES


@given(window=windows, itemsize=itemsizes)
def test_one_square_counts_its_keys_and_values(window: int, itemsize: int) -> None:
    """Of a head of 8 channels, which is far from the bound."""
    counted = clear_scratch_bytes(width=TILE, px=8, itemsize=itemsize, reach=2 * window - 1)
    side = TILE + 2 * (window - 1)
    assert counted > 2 * 8 * side**2 * itemsize
