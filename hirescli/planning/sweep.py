"""One pass over the rows: which rows each operation computes in a band, and what stays in memory.

The engine walks exactly these bands, and the schedule counts exactly these bytes, so that what
is predicted is what is run. A band is worked out backwards: the pass wants some more rows of its
results, each result wants rows of its inputs, with a halo where it reads one. Every operation
goes on where the band before ended it, so nothing is computed twice within a pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hirescli.planning.trace import SizedOp, Window

# Bands that are counted: the first, the second with its halos kept, and two more for rows that
# come only every other band.
_COUNTED_BANDS = 4


@dataclass(frozen=True)
class Read:
    """Rows lo to hi of an input; rows of zeros are wanted above and below it."""

    op: int
    lo: int
    hi: int
    zeros_above: int = 0
    zeros_below: int = 0


@dataclass(frozen=True)
class Step:
    """Rows lo to hi of one operation, computed from (or, without reads, loaded).

    Attributes:
        op: Index of the operation.
        lo, hi: Its rows.
        reads: One for each input; None for those without rows.
        done_with: Operations whose rows nothing reads any more in this band.
    """

    op: int
    lo: int
    hi: int
    reads: tuple[Read | None, ...]
    done_with: tuple[int, ...]


@dataclass(frozen=True)
class Band:
    """The steps of one band, in order.

    Attributes:
        steps: What is computed.
        done: Rows of each operation that are computed when the band is done.
        keep_from: The first row of each operation that a later band reads.
        progress: Rows of the pass's finest level that are done.
    """

    steps: tuple[Step, ...]
    done: Mapping[int, int]
    keep_from: Mapping[int, int]
    progress: int


class Sweep:
    """The bands of one pass, from top to bottom.

    Args:
        ops: All operations at their size.
        order: Indices of those that the pass computes, loads or folds, ascending.
        loads: Those of `order` that are loaded, not computed.
        targets: Those of `order` that must be finished: reductions, and what is kept or given
            out.
    """

    def __init__(
        self,
        ops: Sequence[SizedOp],
        *,
        order: Sequence[int],
        loads: Collection[int],
        targets: Collection[int],
    ) -> None:
        self._ops = ops
        self._order = order
        self._loads = frozenset(loads)
        self._targets = frozenset(targets)
        self._readers: dict[int, list[int]] = {op: [] for op in order}
        for op in order:
            if op not in self._loads:
                for source in set(self._ops[op].op.inputs):
                    if source in self._readers:
                        self._readers[source].append(op)
        self.finest_rows = max((ops[op].swept_rows for op in order), default=0)
        self.progress = 0
        self._done = dict.fromkeys(order, 0)

    @property
    def finished(self) -> bool:
        """Whether the last band is done."""
        return self.progress >= self.finest_rows

    @property
    def done(self) -> Mapping[int, int]:
        """Rows of each operation that are computed; with `progress`, where the sweep is."""
        return self._done

    def go_on(self, progress: int, done: Mapping[int, int]) -> None:
        """Be where another sweep of the same pass was."""
        self.progress, self._done = progress, dict(done)

    def next_band(self, rows: int) -> Band:
        """The band of the next `rows` rows of the finest level; `commit` it when it is done."""
        end = min(self.progress + rows, self.finest_rows)
        need = self._needs(end)
        last_reader: dict[int, int] = {}
        for op in self._order:
            if need[op] > self._done[op] and op not in self._loads:
                last_reader.update(dict.fromkeys(self._ops[op].op.inputs, op))
        steps = []
        for op in self._order:
            if need[op] == self._done[op]:
                continue
            reads = () if op in self._loads else self._reads(op, self._done[op], need[op])
            read = {r.op for r in reads if r is not None}
            done_with = tuple(sorted(source for source in read if last_reader[source] == op))
            steps.append(Step(op, self._done[op], need[op], reads, done_with))
        keep_from = {op: self._keep_from(op, need) for op in self._order}
        return Band(tuple(steps), need, keep_from, end)

    def commit(self, band: Band) -> None:
        """Go on behind the band."""
        self.go_on(band.progress, band.done)

    def _needs(self, end: int) -> dict[int, int]:
        need: dict[int, int] = {}
        for op in reversed(self._order):
            rows, wanted = self._ops[op].swept_rows, self._done[op]
            if op in self._targets:
                wanted = max(wanted, math.ceil(rows * end / self.finest_rows))
            for reader in self._readers[op]:
                if need[reader] > self._done[reader]:
                    last = self._ops[reader].reads(need[reader] - 1, need[reader], rows)[1]
                    wanted = max(wanted, min(last, rows))
            need[op] = wanted
        return need

    def _reads(self, op: int, lo: int, hi: int) -> tuple[Read | None, ...]:
        reads: list[Read | None] = []
        for source in self._ops[op].op.inputs:
            if not self._ops[source].banded:
                reads.append(None)
                continue
            rows = self._ops[source].rows
            first, last = self._ops[op].reads(lo, hi, rows)
            if isinstance(self._ops[op].reach, Window):
                above, below = max(0, -first), max(0, last - rows)
            else:  # the slack of upsampling reads no zeros
                above = below = 0
            reads.append(Read(source, max(first, 0), min(last, rows), above, below))
        return tuple(reads)

    def _keep_from(self, op: int, need: Mapping[int, int]) -> int:
        rows = self._ops[op].swept_rows
        wanted = rows
        for reader in self._readers[op]:
            if need[reader] < self._ops[reader].swept_rows:
                wanted = min(
                    wanted, self._ops[reader].reads(need[reader], need[reader] + 1, rows)[0]
                )
        return max(0, min(wanted, need[op]))


def band_rows(rows: int, *, finest_rows: int, input_rows: int) -> int:
    """Rows of a pass's finest level in one band.

    `rows` counts rows of the component's input. A pass that works below the input's resolution
    takes as many rows of its own level, which are as much work; one above it takes those that
    belong to `rows` rows of the input.
    """
    return max(1, rows * max(finest_rows, input_rows) // input_rows)


def work_bytes(
    sweep: Sweep,
    ops: Sequence[SizedOp],
    rows: int,
    *,
    read: Collection[int] = (),
    written: Collection[int] = (),
) -> int:
    """Peak bytes of a pass beside its stores, counted over its first bands.

    Rows of what memory holds are no copies: those that are `read` from it count there alone, and
    those that are `written` stay to the end of the band.

    Counted are the rows that a band computes and loads, the halos it keeps, the copies that are
    made where an operation reads across a halo, and what calls take for themselves.
    """
    tails: dict[int, tuple[int, int]] = {}
    peak = 0
    for _ in range(_COUNTED_BANDS):
        if sweep.finished:
            break
        band = sweep.next_band(rows)
        live = {op: hi - lo for op, (lo, hi) in tails.items()}
        held = _bytes(live, ops)
        fresh: dict[int, int] = {}
        for step in band.steps:
            copied = sum(_copied_bytes(read, tails, ops) for read in step.reads if read)
            own = step.op not in read
            fresh[step.op] = (step.hi - step.lo) * ops[step.op].row_bytes if own else 0
            held += fresh[step.op]
            scratch = ops[step.op].scratch(step.hi - step.lo)
            peak = max(peak, held + copied + scratch)
            for op in set(step.done_with).difference(written):
                tail = max(0, band.done[op] - band.keep_from[op]) * ops[op].row_bytes
                held -= fresh.pop(op, tail) - tail if op in fresh else 0
        tails = {
            op: (band.keep_from[op], hi) for op, hi in band.done.items() if band.keep_from[op] < hi
        }
        sweep.commit(band)
    return peak


def _bytes(rows: Mapping[int, int], ops: Sequence[SizedOp]) -> int:
    return sum(count * ops[op].row_bytes for op, count in rows.items())


def _copied_bytes(read: Read, tails: Mapping[int, tuple[int, int]], ops: Sequence[SizedOp]) -> int:
    """Bytes of a read that is put together from the rows kept before and the new ones."""
    kept = tails.get(read.op)
    if kept is None or read.lo >= kept[1]:
        return 0
    return (read.hi - read.lo) * ops[read.op].row_bytes
