"""Sweeps: whatever the graph and the bands, each row once, and none that is gone is read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hirescli.planning.sweep import Band, Read, Step, Sweep, band_rows, work_bytes
from hirescli.planning.trace import Op, SizedOp, Stretch, Trace, Window

WINDOWS = [
    None,
    Window(3, 1, 1, 1),
    Window(5, 1, 2, 2),
    Window(3, 2, 1, 1),
    Window(3, 2, 0, 1),
    Window(2, 2),
    Stretch(2),
]


@dataclass(frozen=True)
class Case:
    """Operations at a size and what a pass over them takes."""

    ops: tuple[SizedOp, ...]
    order: list[int]
    loads: set[int]
    targets: set[int]

    def sweep(self) -> Sweep:
        return Sweep(self.ops, order=self.order, loads=self.loads, targets=self.targets)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small graphs of windows, upsampling, joins and reductions."""
    rows = draw(st.integers(1, 23))
    ops = [Op("input", "input", px=1)]
    for _ in range(draw(st.integers(1, 9))):
        ops.append(draw(_operation(ops, Trace(tuple(ops), ()).at(rows, 4))))
    sized = Trace(tuple(ops), ()).at(rows, 4)
    read = {i for op in ops for i in op.inputs}
    ends = set(range(len(ops))) - read
    targets = ends | draw(st.sets(st.sampled_from(range(1, len(ops))), max_size=2))
    kept = draw(st.sets(st.sampled_from(range(len(ops))), max_size=2)) - targets
    loads = {0} | {op for op in kept if sized[op].banded}
    order = _closure(ops, targets, loads)
    return Case(sized, order, loads & set(order), targets)


@st.composite
def _operation(draw: st.DrawFn, ops: list[Op], sized: tuple[SizedOp, ...]) -> Op:
    first = draw(st.sampled_from([i for i, op in enumerate(sized) if op.banded]))
    alike = [i for i, op in enumerate(sized) if op.banded and op.rows == sized[first].rows]
    second = draw(st.sampled_from(alike))
    inputs = (first, second) if draw(st.booleans()) and second != first else (first,)
    if draw(st.integers(0, 5)) == 0:
        return Op("reduction", "fold", inputs, state_numbers=1)
    reach = draw(st.sampled_from(WINDOWS))
    if isinstance(reach, Window) and reach.size_out(sized[first].rows) < 1:
        reach = None
    return Op("local", "op", inputs, reach, px=1)


def _closure(ops: list[Op], targets: set[int], loads: set[int]) -> list[int]:
    waiting, seen = list(targets), set[int]()
    while waiting:
        op = waiting.pop()
        if op not in seen:
            seen.add(op)
            waiting.extend(() if op in loads else ops[op].inputs)
    return sorted(seen)


class Memory:
    """What a pass holds: rows from `kept` to `done` of each operation."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.done = dict.fromkeys(case.order, 0)
        self.kept = dict.fromkeys(case.order, 0)

    def take(self, band: Band) -> None:
        gone: set[int] = set()
        for step in band.steps:
            assert step.lo == self.done[step.op] < step.hi, "rows are computed once, in order"
            assert step.hi <= self.case.ops[step.op].swept_rows
            for read in step.reads:
                assert read is not None
                assert read.op not in gone, "read after its last use in the band"
                assert self.kept[read.op] <= read.lo < read.hi <= self.done[read.op]
            if step.op not in self.case.loads:
                for source, read in zip(self._sources(step), step.reads, strict=True):
                    assert read is not None
                    self._holds_what_is_read(step, source, read)
            gone |= set(step.done_with)
            self.done[step.op] = step.hi
        assert dict(band.done) == self.done
        for op, row in band.keep_from.items():
            assert row >= self.kept[op], "a row that is gone stays gone"
        self.kept = dict(band.keep_from)

    def _sources(self, step: Step) -> tuple[int, ...]:
        return self.case.ops[step.op].op.inputs

    def _holds_what_is_read(self, step: Step, source: int, read: Read) -> None:
        """By the definition of windows and nearest upsampling, row by row."""
        sized, rows = self.case.ops[step.op], self.case.ops[source].rows
        assert read.op == source
        for row in range(step.lo, step.hi):
            wanted = [row]
            if isinstance(sized.reach, Stretch):
                wanted = [row * rows // sized.rows]
            elif sized.reach is not None:
                top = row * sized.reach.stride - sized.reach.before
                wanted = list(range(top, top + sized.reach.span))
                assert read.lo - read.zeros_above <= top
                assert top + sized.reach.span <= read.hi + read.zeros_below
            inside = [each for each in wanted if 0 <= each < rows]
            assert all(read.lo <= each < read.hi for each in inside)
        assert (read.zeros_above == 0) or read.lo == 0
        assert (read.zeros_below == 0) or read.hi == rows


@settings(max_examples=300)
@given(cases(), st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_each_row_once_from_rows_that_are_held(case: Case, heights: list[int]) -> None:
    sweep, memory, bands = case.sweep(), Memory(case), 0
    while not sweep.finished:
        height = heights[min(bands, len(heights) - 1)]
        band = sweep.next_band(height)
        assert band.progress == min(sweep.progress + height, sweep.finest_rows)
        memory.take(band)
        sweep.commit(band)
        bands += 1
    for op in case.targets:
        assert memory.done[op] == case.ops[op].swept_rows


@settings(max_examples=60)
@given(cases(), st.integers(1, 30), st.integers(1, 30))
def test_a_band_that_is_not_committed_leaves_no_trace(case: Case, first: int, other: int) -> None:
    sweep = case.sweep()
    before = sweep.next_band(other)
    sweep.next_band(first)
    assert sweep.next_band(other) == before


@settings(max_examples=60)
@given(cases())
def test_one_band_reads_everything_at_once(case: Case) -> None:
    sweep = case.sweep()
    assume(sweep.finest_rows > 0)
    band = sweep.next_band(sweep.finest_rows)
    assert all(step.lo == 0 for step in band.steps)
    sweep.commit(band)
    assert sweep.finished


def _halos(rows: int) -> tuple[tuple[SizedOp, ...], Collection[int]]:
    conv = Window(3, 1, 1, 1)
    ops = (
        Op("input", "input", px=2, itemsize=1),
        Op("local", "conv", (0,), conv, px=3, itemsize=1),
        Op("local", "conv", (1,), conv, px=5, itemsize=1),
    )
    return Trace(ops, (2,)).at(rows, 10), {2}


def test_work_of_one_band_is_the_largest_pair() -> None:
    ops, targets = _halos(8)
    sweep = Sweep(ops, order=[0, 1, 2], loads=[0], targets=targets)
    # Input and first, then first and second; a row has 10 pixels.
    assert work_bytes(sweep, ops, 8) == max(2 + 3, 3 + 5) * 10 * 8


def test_halos_are_kept_from_band_to_band() -> None:
    ops, targets = _halos(12)
    sweep = Sweep(ops, order=[0, 1, 2], loads=[0], targets=targets)
    first = sweep.next_band(4)
    assert [(s.op, s.lo, s.hi) for s in first.steps] == [(0, 0, 6), (1, 0, 5), (2, 0, 4)]
    # Row 4 of the second reads rows 3 to 5 of the first; row 5 of that rows 4 to 6.
    assert first.keep_from == {0: 4, 1: 3, 2: 4}
    sweep.commit(first)
    second = sweep.next_band(4)
    assert [(s.op, s.lo, s.hi) for s in second.steps] == [(0, 6, 10), (1, 5, 9), (2, 4, 8)]
    (read,) = second.steps[2].reads
    assert read == Read(1, 3, 9)


@pytest.mark.parametrize(
    ("rows", "finest", "given", "expected"),
    [(16, 128, 128, 16), (16, 1024, 128, 128), (16, 32, 128, 16), (1, 3, 128, 1), (3, 33, 32, 3)],
)
def test_band_height_counts_rows_of_the_input(
    rows: int, finest: int, given: int, expected: int
) -> None:
    assert band_rows(rows, finest_rows=finest, input_rows=given) == expected
