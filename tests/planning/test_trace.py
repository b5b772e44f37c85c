"""Traces: which rows are read, sizes of odd inputs, and traces as text."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hirescli.planning.trace import Op, Pool, Stretch, Trace, Window

windows = st.builds(
    Window, st.integers(1, 7), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3)
)


@given(windows, st.integers(1, 40))
def test_a_window_has_a_row_wherever_it_fits(window: Window, size: int) -> None:
    padded = window.before + size + window.after
    starts = [o for o in range(0, padded, window.stride) if o + window.span <= padded]
    assert max(0, window.size_out(size)) == len(starts)


@given(windows, st.integers(0, 30), st.integers(1, 12))
def test_a_window_reads_the_rows_of_its_rows(window: Window, lo: int, rows: int) -> None:
    read = {
        o * window.stride - window.before + i
        for o in range(lo, lo + rows)
        for i in range(window.span)
    }
    assert window.reads(lo, lo + rows) == (min(read), max(read) + 1)


@given(st.integers(1, 5), st.integers(1, 20), st.data())
def test_a_stretch_reads_the_nearest_rows(factor: int, size_in: int, data: st.DataObject) -> None:
    size_out = data.draw(st.integers(factor * (size_in - 1) + 1, factor * size_in))
    lo = data.draw(st.integers(0, size_out - 1))
    hi = data.draw(st.integers(lo + 1, size_out))
    nearest = {o * size_in // size_out for o in range(lo, hi)}
    first, last = Stretch.reads(lo, hi, size_in, size_out)
    slack = 1 if size_out % size_in else 0
    assert (first, last) == (min(nearest) - slack, max(nearest) + 1 + slack)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 200))
def test_a_pool_is_the_smallest_that_is_enough(rows: int, width: int, most_px: int) -> None:
    def px(factor: int) -> int:
        return math.ceil(rows / factor) * math.ceil(width / factor)

    factor = Pool(most_px).factor(rows, width)
    assert factor == next(f for f in range(1, 61) if px(f) <= most_px)
    for size in (rows, width):
        window = Pool(most_px).window(size, factor)
        assert window.size_out(size) == math.ceil(size / factor)
        assert window.after < factor  # no square lies outside


numbers = st.floats(0, 1e12, allow_nan=False)
reaches = st.one_of(
    st.none(),
    windows,
    st.builds(Stretch, st.integers(1, 8)),
    st.builds(Pool, st.integers(1, 10**6)),
)
operations = st.builds(
    Op,
    kind=st.sampled_from(["input", "local", "reduction", "gather", "resident"]),
    name=st.text(max_size=8),
    inputs=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    reach=reaches,
    width_reach=reaches,
    level=st.fractions(Fraction(1, 64), 64, max_denominator=64),
    px=numbers,
    itemsize=st.sampled_from([1, 2, 4, 8]),
    px_flops=numbers,
    px_key_flops=numbers,
    state_numbers=st.integers(0, 10**9),
    anchor=st.booleans(),
    weights=st.lists(st.text(max_size=8), max_size=2).map(tuple),
    module=st.text(max_size=8),
)


@given(
    st.lists(operations, max_size=4).map(tuple),
    st.lists(st.integers(0, 3), max_size=2).map(tuple),
    st.dictionaries(st.text(max_size=8), st.integers(0, 10**12), max_size=2),
)
def test_json_keeps_everything(
    ops: tuple[Op, ...], outputs: tuple[int, ...], weight_bytes: dict[str, int]
) -> None:
    trace = Trace(ops, outputs, weight_bytes)
    assert Trace.from_json(trace.to_json()) == trace


HALVE, DOUBLE = Window(3, 2, 1, 1), Stretch(2)


def chain(*reaches: Window | Stretch) -> Trace:
    """One operation behind the other, each reaching the same in both directions."""
    ops = [Op("input", "input", px=2)]
    for i, reach in enumerate(reaches):
        ops.append(Op("local", "op", (i,), reach, reach, px=2))
    return Trace(tuple(ops), (len(reaches),))


@pytest.mark.parametrize("size", [(33, 21), (8, 5), (1, 2)])
def test_a_way_up_ends_at_the_sizes_of_the_way_down(size: tuple[int, int]) -> None:
    sized = chain(*[HALVE] * 3, *[DOUBLE] * 3).at(*size)
    sizes = [(op.rows, op.width) for op in sized]
    assert sizes[3] == tuple(math.ceil(side / 8) for side in size)
    assert sizes[::-1] == sizes
    assert [op.level for op in sized[:4]] == [Fraction(1, 2**k) for k in range(4)]


def test_a_way_up_alone_doubles() -> None:
    sized = chain(DOUBLE, DOUBLE).at(5, 3)
    assert [(op.rows, op.width) for op in sized] == [(5, 3), (10, 6), (20, 12)]


def test_rows_cost_what_their_pixels_cost() -> None:
    ops = (
        Op("input", "input", px=3, itemsize=2),
        Op("local", "conv2d", (0,), HALVE, HALVE, px=8, itemsize=2, px_flops=50),
        Op("reduction", "moments", (1,), state_numbers=6, itemsize=8, px_flops=7),
    )
    image, conv, moments = Trace(ops, (2,)).at(9, 7)
    assert (image.rows, image.width, image.row_bytes) == (9, 7, 7 * 3 * 2)
    assert (conv.rows, conv.width, conv.row_bytes) == (5, 4, 4 * 8 * 2)
    assert conv.row_flops == 4 * 50
    assert not moments.banded
    assert (moments.swept_rows, moments.row_flops, moments.state_bytes) == (5, 4 * 7, 6 * 8)


def test_attention_costs_each_pair_of_pixels() -> None:
    ops = (
        Op("input", "input", px=4),
        Op("gather", "gather", (0,)),
        Op("gather", "gather", (0,)),
        Op("local", "attention", (0, 1, 2), px=4, px_key_flops=16),
    )
    *_, attention = Trace(ops, (3,)).at(6, 5)
    assert attention.row_flops * attention.rows == 16 * (6 * 5) ** 2


def test_an_input_of_another_level_has_its_own_size() -> None:
    ops = (Op("input", "latents", px=4), Op("input", "control", level=Fraction(8), px=3))
    latents, control = Trace(ops, ()).at(5, 7)
    assert (latents.rows, control.rows, control.width) == (5, 40, 56)
