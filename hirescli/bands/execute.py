"""Execution: the passes of a schedule, band by band."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hirescli.bands.graph import Graph
from hirescli.bands.heap import HEAP_BYTES, REUSED_BYTES, HeapGuard, steady_heap, trim
from hirescli.bands.snapshot import Resumable, StaleError, Tree, state_of_tree, tree_of_state
from hirescli.bands.stores import Kept, Ledger, cut, new_value
from hirescli.bands.tensor import OUTSIDE, Node, Span
from hirescli.digest import digest
from hirescli.errors import NotFiniteError, RunError
from hirescli.events import BandHalved, Listener, PassDone
from hirescli.planning.passes import Pass, Schedule
from hirescli.planning.sweep import Band, Read, Step, Sweep

Piece = tuple[int, int, Tensor]  # first row, row behind the last, band
Sink = Callable[[int, int, Tensor], None]


@dataclass
class Execution:
    """One run of a schedule.

    Attributes:
        graph: What is computed.
        schedule: How.
        sinks: For each output (its place among `graph.outputs`), what takes its bands: first
            row, row behind the last, band. After memory ran out it may be given rows again.
        spill: Folder of the disk store.
        ledger: Counts the stores' bytes.
        listener: Is told of passes.
        call: Name of the component that is called, for events.
        resumable: Where the call is remembered, so that another process can go on with it.
    """

    graph: Graph
    schedule: Schedule
    sinks: Sequence[Sink]
    spill: Path
    ledger: Ledger
    listener: Listener
    call: str = ""
    resumable: Resumable | None = None
    _weights: PassWeights = field(init=False)
    _heap: HeapGuard = field(init=False)
    _standing_bytes: int = field(init=False)  # of values that other calls keep
    _kept: dict[int, Kept] = field(default_factory=dict)
    _values: dict[int, Tensor] = field(default_factory=dict)
    _spoken_of: set[int] = field(default_factory=set)  # values on disk that a snapshot needs

    def __post_init__(self) -> None:
        self._weights = PassWeights(self.graph.nodes[0].device)

    @property
    def bring(self) -> Callable[[Tensor], Tensor]:
        """Gives a weight where it can be computed with."""
        return self._weights.bring

    @torch.no_grad()
    def run(self) -> None:
        """Run all passes.

        Raises:
            NotFiniteError: If a reduction or an output is no number, naming pass and module.
            RunError: If memory does not suffice for one row, or the disk is full.
        """
        steady_heap()
        if self.schedule.standing_bytes > HEAP_BYTES:  # what made it while recording lies free
            trim()
        self._standing_bytes = self.counted_bytes
        self._heap = HeapGuard(self._standing_bytes)
        self.graph.check(self.schedule.ops)
        total = len(self.schedule.passes)
        first, begun = self._begun()
        try:
            for number, each in enumerate(self.schedule.passes, start=1):
                if number < first:
                    continue
                before = begun if number == first else None
                if before is None:  # else what it prepares is among what was read
                    self._prepare(each)
                _PassRun(self, each, number).run(before)
                self._forget_states(each.states.forgets)
                self._free(each, number)
                self._weights.leave()
                self.listener(PassDone(self.call, number, total))
        except BaseException as error:
            # What a snapshot speaks of stays: after a signal or on a full disk it goes on later.
            self._forget(leave=not isinstance(error, NotFiniteError))
            raise
        self._forget()

    def _begun(self) -> tuple[int, Tree | None]:
        """The pass to go on with, and what was read of it."""
        if self.resumable is None:
            return 1, None
        tree = self.resumable.snapshots.latest()
        if tree is None:
            return 1, None
        if tree["schedule"] != self._digest:
            self.resumable.snapshots.stale("a snapshot is of another schedule")
            return 1, None
        try:
            for op, kept in tree["kept"]:
                self.kept(op).restore(kept)
            for saved, state in zip(self.resumable.outputs, tree["outputs"], strict=True):
                saved.restore(state)
        except StaleError as error:
            self._forget()
            self.resumable.snapshots.stale(str(error))
            return 1, None
        self._values = {op: read() for op, read in tree["values"]}
        self._spoken_of = {op for op, _ in tree["kept"]}
        return tree["pass"], tree["begun"]

    def save(self, number: int, begun: Tree | None) -> bool:
        """Take a snapshot: pass `number` is next, or under way as `begun` says."""
        assert self.resumable is not None
        stores, kept = self.schedule.stores, self.schedule.kept
        saved = self.resumable.snapshots.save({
            "schedule": self._digest,
            "pass": number,
            "begun": begun,
            "values": [[op, value] for op, value in self._values.items()],
            "kept": [[op, kept.state()] for op, kept in self._kept.items()],
            "outputs": [output.state() for output in self.resumable.outputs],
        })  # fmt: skip
        if saved:
            self._spoken_of = {op for op in self._kept if stores[kept[op]].name == "disk"}
        return saved

    @cached_property
    def _digest(self) -> str:
        """Of the schedule: a snapshot of another one is of no use."""
        passes = [(each.order, each.keeps, each.band_rows) for each in self.schedule.passes]
        return digest(repr((passes, self.schedule.kept, self.graph.rows)).encode())

    def _free(self, each: Pass, number: int) -> None:
        """Let go of values that nothing reads any more."""
        freed = {op: self._kept.pop(op) for op in each.frees}
        if self.resumable is not None and self._spoken_of & freed.keys():
            try:  # the latest snapshot needs a file that goes now
                self._save_or_drop(number + 1)
            except BaseException:
                self._kept |= freed
                raise
        for kept in freed.values():
            kept.close()

    def _save_or_drop(self, number: int) -> None:
        assert self.resumable is not None
        if self.resumable.snapshots.due(self.counted_bytes) and self.save(number, None):
            return
        self.resumable.snapshots.drop()
        self._spoken_of = set()

    def _forget(self, *, leave: bool = False) -> None:
        for kept in self._kept.values():
            kept.close(leave=leave)
        self._kept.clear()

    def give_back(self, but_bytes: int = 0) -> None:
        """Give free memory back to the system, but so many bytes for the next band."""
        self._heap.check(self.counted_bytes + but_bytes)

    def give_back_for(self, step: Step) -> None:
        """Give free memory back that, with what a step makes, would exceed the planned peak."""
        op, schedule = self.schedule.ops[step.op], self.schedule
        rows = step.hi - step.lo
        made_bytes = rows * op.row_bytes + op.scratch(rows)
        peak_bytes = self._standing_bytes + schedule.peak_bytes[schedule.stores[0].name]
        self._heap.check(peak_bytes - made_bytes)

    @property
    def counted_bytes(self) -> int:
        """Of values in stores, where bands on a CPU are."""
        return self.ledger.now.get("host", 0) + self.ledger.now.get("device", 0)

    def _prepare(self, each: Pass) -> None:
        """Compute what has no rows before the bands of a pass."""
        for prepared in each.states.prepares:
            node = self._node(prepared.op)
            assert node.kernel is not None
            parents = [self.value(i) for i in self.schedule.ops[prepared.op].op.inputs]
            self._values[prepared.op] = node.kernel(parents, Span(0, 0, bring=self.bring))
            self._forget_states(prepared.frees)

    def _forget_states(self, ops: Sequence[int]) -> None:
        for op in ops:
            del self._values[op]

    def value(self, op: int) -> Tensor:
        """The value of a reduction, or of what is computed from reductions alone."""
        return self._values[op]

    def finish(self, op: int, value: Tensor, number: int) -> None:
        """Take the value of a reduction."""
        if not finite(value):
            raise self.not_finite(op, number)
        self._values[op] = value

    def not_finite(self, op: int, number: int) -> NotFiniteError:
        """The error of an operation that gave no number."""
        node = self._node(op)
        while node.module == OUTSIDE and node.parents:  # between modules: name what it reads
            node = node.parents[0]
        return NotFiniteError(
            f"{node.name} in {node.module} is not a finite number (pass {number} "
            f"of {len(self.schedule.passes)}, {str(node.dtype).removeprefix('torch.')})"
        )

    def kept(self, op: int) -> Kept:
        """The value of `op` in its store."""
        if op not in self._kept:
            store = self.schedule.stores[self.schedule.kept[op]].name
            name = None
            if self.resumable is not None:
                name = f"{self.resumable.snapshots.prefix}{op}.value"
            self._kept[op] = new_value(self._node(op), store, self.spill, self.ledger, name=name)
        return self._kept[op]

    def keys(self, op: int) -> Callable[[], Any]:
        """All bands of a gathered value, for attention."""
        source = self.schedule.ops[op].op.inputs[0]
        rows = self.schedule.ops[source].rows
        node = self._node(source)

        def bands() -> Any:
            if node.source is not None:
                yield node.source(0, rows)
                return
            step = self._key_rows(source)
            for lo in range(0, rows, step):
                yield self.kept(source).rows(lo, min(lo + step, rows))

        return bands

    def _key_rows(self, source: int) -> int:
        """Rows of keys at a time: the same for every store, since rounding depends on it."""
        sized = self.schedule.ops[source]
        return max(1, self.schedule.rows * sized.rows // max(self.graph.rows, sized.rows))

    def _node(self, op: int) -> Node:
        return self.graph.nodes[op]


class PassWeights:
    """The weights that a pass reads, where bands are computed.

    Those that lie there already are taken as they are; those that rest on the host are copied
    once in a pass and let go at its end.

    Args:
        device: Where bands are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: dict[int, Tensor] = {}

    def bring(self, weight: Tensor) -> Tensor:
        """The weight, on the device."""
        if weight.device == self._device:
            return weight
        if id(weight) not in self._copies:
            self._copies[id(weight)] = weight.to(self._device, non_blocking=True)
        return self._copies[id(weight)]

    def leave(self) -> None:
        """The pass is done."""
        self._copies.clear()


@dataclass
class _PassRun:
    """One pass: rows that wait to be read, and states that grow.

    A band either happens or does not: what it computes is taken over at its end, so that after
    memory ran out the same rows are computed again in lower bands. Stores and sinks, which have
    some of them already, are then given them again.
    """

    execution: Execution
    each: Pass
    number: int
    pieces: dict[int, list[Piece]] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    between: bool = True  # whether pieces and states are those of whole bands

    def run(self, begun: Tree | None) -> None:
        """All bands from top to bottom, or those behind where an earlier process was."""
        sweep, rows = self.each.sweep(self.execution.schedule.ops), self.each.band_rows
        if begun is not None:
            rows = self._go_on(begun, sweep)
        room_bytes = self._room_bytes()
        spare_bytes = room_bytes + self._reused_bytes()
        self.execution.give_back(but_bytes=room_bytes)
        while not sweep.finished:
            rows = self._halved_before(sweep.progress, rows)
            band = sweep.next_band(rows)
            try:
                self._band(band)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                rows = self._halved(sweep.progress, rows, error)
                continue
            except BaseException as error:
                if self.between and not isinstance(error, Exception):
                    self._save(sweep, rows)  # a signal: keep what was done
                raise
            sweep.commit(band)
            self.between = True
            self._save_if_due(sweep, rows)
            self.execution.give_back(but_bytes=spare_bytes)
        for op in self.each.folds:
            reduction = self._node(op).reduction
            assert reduction is not None
            self.execution.finish(op, reduction.finish(self.states[op]), self.number)

    def _halved(self, progress: int, rows: int, error: BaseException) -> int:
        """The next band height after memory ran out."""
        if rows == 1:
            raise RunError(
                f"out of memory in one row of {self._where()}; use a smaller --size or "
                "free some memory"
            ) from error
        rows = max(1, rows // 2)
        _release_memory()
        self.execution.listener(BandHalved(self.number, rows))
        if (resumable := self.execution.resumable) is not None:
            resumable.snapshots.halved(self.number, progress, rows)
        return rows

    def _halved_before(self, progress: int, rows: int) -> int:
        """The band height of an earlier process that memory ran out for: bits depend on it."""
        resumable = self.execution.resumable
        if resumable is None:
            return rows
        return min(rows, resumable.snapshots.halvings.get((self.number, progress), rows))

    def _save_if_due(self, sweep: Sweep, rows: int) -> None:
        resumable = self.execution.resumable
        if resumable is None or sweep.finished:
            return
        if resumable.snapshots.due(self.execution.counted_bytes + self.each.work_bytes):
            self._save(sweep, rows)

    def _save(self, sweep: Sweep, rows: int) -> None:
        if self.execution.resumable is None:
            return
        begun = {
            "rows": rows,
            "progress": sweep.progress,
            "done": [list(each) for each in sweep.done.items()],
            "pieces": [[op, *piece] for op, held in self.pieces.items() for piece in held],
            "states": [[op, tree_of_state(state)] for op, state in self.states.items()],
        }
        self.execution.save(self.number, begun)

    def _go_on(self, begun: Tree, sweep: Sweep) -> int:
        """Be where a snapshot was; returns its band height."""
        sweep.go_on(begun["progress"], dict(begun["done"]))
        for op, lo, hi, read in begun["pieces"]:
            self.pieces.setdefault(op, []).append((lo, hi, read()))
        self.states = {op: state_of_tree(tree) for op, tree in begun["states"]}
        return int(begun["rows"])

    def _room_bytes(self) -> int:
        """What this pass takes less than the one that takes the most: it may lie free."""
        schedule = self.execution.schedule
        peak = schedule.peak_bytes[schedule.stores[0].name]
        return peak - schedule.standing_bytes - self.each.first_store_bytes

    def _reused_bytes(self) -> int:
        """What a band leaves free for the next, which is alike: not the large blocks of calls."""
        work = self.each.work_bytes
        if work > REUSED_BYTES:
            return 0
        ops = self.execution.schedule.ops
        return work - max((ops[op].scratch_bytes for op in self.each.order), default=0)

    def _band(self, band: Band) -> None:
        fresh: dict[int, list[Piece]] = {}
        partials: dict[int, Any] = {}
        large = self.each.work_bytes > HEAP_BYTES
        for step in band.steps:
            node = self._node(step.op)
            if large:  # what lies free may fill up the room under the peak, but for this step
                self.execution.give_back_for(step)
            if step.op in self.each.loads:
                fresh[step.op] = self._load(step)
            elif node.reduction is not None:
                partials[step.op] = node.reduction.partial(self._folded(step, fresh))
            else:
                made = self._compute(step, node, fresh)
                fresh[step.op] = [(step.lo, step.hi, made)]
                if step.op in self.each.keeps:  # given again if memory runs out further on
                    self.execution.kept(step.op).put(step.lo, step.hi, made)
                del made
            if step.op in self.each.outputs:
                self._give_out(step, fresh[step.op])
            for op in step.done_with:
                self._trim(op, fresh, band.keep_from[op])
        self._commit(band, fresh, partials)

    def _compute(self, step: Step, node: Node, fresh: Mapping[int, list[Piece]]) -> Tensor:
        assert node.kernel is not None
        first, native = 0, False
        arguments: list[Any] = []
        for parent, read in zip(node.parents, step.reads, strict=True):
            if read is not None:
                zeros = (read.zeros_above, read.zeros_below)
                native = node.native_zeros > 0 and zeros == (node.native_zeros,) * 2
                arguments.append(self._read(read, fresh, zeros=not native))
                first = read.lo - (0 if native else read.zeros_above)
            elif parent.kind == "gather":
                arguments.append(self.execution.keys(self._index(step, len(arguments))))
            else:
                arguments.append(self.execution.value(self._index(step, len(arguments))))
        span = Span(step.lo, step.hi, first, native, self.execution.bring)
        return node.kernel(arguments, span)

    def _folded(self, step: Step, fresh: Mapping[int, list[Piece]]) -> list[Tensor]:
        """What a reduction reads of a band: rows, and whole values."""
        return [
            self.execution.value(self._index(step, place))
            if read is None
            else self._read(read, fresh)
            for place, read in enumerate(step.reads)
        ]

    def _index(self, step: Step, place: int) -> int:
        return self.execution.schedule.ops[step.op].op.inputs[place]

    def _load(self, step: Step) -> list[Piece]:
        node = self._node(step.op)
        if node.source is not None:
            return [(step.lo, step.hi, node.source(step.lo, step.hi))]
        return [(step.lo, step.hi, self.execution.kept(step.op).rows(step.lo, step.hi))]

    def _read(self, read: Read, fresh: Mapping[int, list[Piece]], zeros: bool = True) -> Tensor:
        node = self._node(read.op)
        assert node.grid is not None
        waiting = [*self.pieces.get(read.op, ()), *fresh.get(read.op, ())]
        found = cut(waiting, read.lo, read.hi, node.grid.dim, node.per_row)
        above, below = (read.zeros_above, read.zeros_below) if zeros else (0, 0)
        return join(found, node, above, below)

    def _give_out(self, step: Step, pieces: list[Piece]) -> None:
        band = join(pieces, self._node(step.op))
        if band.dtype.is_floating_point and not finite(band):
            raise self.execution.not_finite(step.op, self.number)
        for place, op in enumerate(self.execution.graph.outputs):
            if op == step.op:
                self.execution.sinks[place](step.lo, step.hi, band)

    def _trim(self, op: int, fresh: dict[int, list[Piece]], keep_from: int) -> None:
        """Let go of fresh rows above `keep_from`; the kept part no longer holds the rest."""
        node = self._node(op)
        if op not in fresh or node.grid is None:
            return
        kept: list[Piece] = []
        for lo, hi, band in cut(fresh[op], keep_from, 1 << 62, node.grid.dim, node.per_row):
            whole = any(band is piece[2] for piece in fresh[op])
            kept.append((lo, hi, band if whole else band.clone()))
        fresh[op] = kept

    def _commit(
        self, band: Band, fresh: dict[int, list[Piece]], partials: Mapping[int, Any]
    ) -> None:
        self.between = False
        for op, partial in partials.items():
            reduction = self._node(op).reduction
            assert reduction is not None
            known = op in self.states
            self.states[op] = reduction.merge(self.states[op], partial) if known else partial
        for op in {*self.pieces, *fresh}:
            self._trim(op, fresh, band.keep_from[op])
            old = [p for p in self.pieces.get(op, ()) if p[1] > band.keep_from[op]]
            self.pieces[op] = [*old, *fresh.get(op, ())]
        for op in self.each.frees:
            if op in self.each.loads:
                self.execution.kept(op).free(band.keep_from[op])

    def _node(self, op: int) -> Node:
        return self.execution.graph.nodes[op]

    def _where(self) -> str:
        return f"pass {self.number} of {len(self.execution.schedule.passes)}"


def join(pieces: Sequence[Piece], node: Node, above: int = 0, below: int = 0) -> Tensor:
    """One band of adjoining pieces, with rows of zeros above and below it."""
    bands = [band for _, _, band in pieces]
    assert node.grid is not None
    if above:
        bands.insert(0, _zeros(node, above, bands[0]))
    if below:
        bands.append(_zeros(node, below, bands[-1]))
    return bands[0] if len(bands) == 1 else torch.cat(bands, node.grid.dim)


def _zeros(node: Node, rows: int, like: Tensor) -> Tensor:
    shape = node.band_shape(rows)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    made = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    return made.zero_()


def finite(x: Tensor) -> bool:
    """Whether all numbers are finite: one that is not makes the sum so, which cannot overflow.

    A sum makes no temporaries, and a few of these, small as they were, took a tenth of a step.
    """
    return math.isfinite(x.sum(dtype=torch.float64).item())


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def _release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
