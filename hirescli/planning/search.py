"""The search for what is kept between passes, and where. No torch.

1. Keep every value that saves arithmetic (an *anchor*) where a later pass needs it;
2. leave out those that cost nothing, since a later pass computes them once anyway;
3. while a store is over its budget, at the worst pass, take the step that costs the least
   seconds for each byte it frees: move a value to the next store, or compute it again. Other
   ways are tried too (`attempts`), and the quickest is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field

from hirescli.planning.passes import Pass, Schedule, Store
from hirescli.planning.states import PassStates, pass_states
from hirescli.planning.sweep import Sweep, band_rows, work_bytes
from hirescli.planning.trace import SizedOp


@dataclass
class _Use:
    """What one pass computes and loads.

    Attributes:
        computes, loads: Operations.
        needs: Values without rows that its bands read.
        gathers: Values that its bands read all rows of.
        finest_rows: The most rows that one of its operations has.
        flops: Of what it computes.
    """

    computes: frozenset[int]
    loads: frozenset[int]
    needs: frozenset[int]
    gathers: frozenset[int]
    finest_rows: int
    flops: float


@dataclass
class Search:
    """The state of the search: which values are kept where, and what each pass does so.

    Attributes:
        kept: Values in a store, and which.
        uses: What each pass does, by its depth.
        work: Work bytes of each pass that is counted already.
        loaded: Bytes of the weights that passes load, by name.
        standing_bytes: Of what stands in the first store all the time, beside states.
    """

    ops: Sequence[SizedOp]
    outputs: Sequence[int]
    stores: Sequence[Store]
    flops_per_second: float
    rows_in: int
    loaded: Mapping[str, int]
    standing_bytes: int = 0
    depth: list[int] = field(default_factory=list)
    kept: dict[int, int] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()
    uses: dict[int, _Use] = field(default_factory=dict)
    work: dict[int, int] = field(default_factory=dict)
    rows: int = 1

    def start(self, keep_in: int | None) -> None:
        """Keep every anchor that a later pass needs, then leave out those that cost nothing."""
        self.depth = _depths(self.ops)
        self._inputs = [sized.op.inputs for sized in self.ops]
        self._stateful = frozenset(
            i for i, sized in enumerate(self.ops) if sized.op.kind in ("reduction", "resident")
        )
        self._known_states: dict[int, PassStates] | None = None
        first = keep_in or 0
        self._folds: dict[int, list[int]] = {}
        for index, sized in enumerate(self.ops):
            if sized.op.kind == "reduction":
                self._folds.setdefault(self.depth[index] - 1, []).append(index)
        # Attention needs its keys and values whole, so they must rest somewhere. A view of
        # what is kept would be made again for every band of queries.
        self._gathered = {
            i: s.op.inputs[0] for i, s in enumerate(self.ops) if s.op.kind == "gather"
        }
        self.pinned = frozenset(self._gathered.values())
        self._out_passes = {k: [o for o in self.outputs if self.depth[o] == k] for k in self._all}
        self.kept = dict.fromkeys((p for p in self.pinned if not self._is_input(p)), first)
        self._keep_anchors(first)
        self._recount(self._all)
        self._leave_out_free_ones()

    @property
    def _all(self) -> range:
        return range(max(self.depth) + 1)

    def copy(self) -> Search:
        """A search that goes on from here by itself."""
        twin = copy(self)
        twin.kept, twin.uses, twin.work = dict(self.kept), dict(self.uses), dict(self.work)
        return twin

    def set_rows(self, rows: int) -> None:
        """Count work at this band height."""
        self.rows, self.work = rows, {}

    def widest_work(self) -> int:
        """The largest work of a pass."""
        return max(self._work(k) for k in self.uses)

    def forget_states(self) -> None:
        """What passes do has changed."""
        self._known_states = None

    @property
    def _states(self) -> dict[int, PassStates]:
        """Values without rows, by pass."""
        if self._known_states is None:
            needs = {k: use.needs for k, use in self.uses.items()}
            self._known_states = pass_states(self.ops, self.depth, needs)
        return self._known_states

    def _is_input(self, op: int) -> bool:
        return self.ops[op].op.kind == "input"

    # What passes do

    def _keep_anchors(self, store: int) -> None:
        # From the last pass on: what it wants kept, an earlier one makes from what it wants kept.
        for k in reversed(self._all):
            waiting, seen = list(self._targets(k)), set()
            while waiting:
                op = waiting.pop()
                if op in seen or self._is_input(op):
                    continue
                seen.add(op)
                if self.depth[op] < k and (self.ops[op].op.anchor or op in self.kept):
                    self.kept.setdefault(op, store)
                else:
                    waiting.extend(self._banded_inputs(op))

    def _banded_inputs(self, op: int) -> list[int]:
        return [i for i in self.ops[op].op.inputs if self.ops[i].banded]

    def _targets(self, k: int) -> Iterable[int]:
        yield from self._folds.get(k, [])
        yield from self._out_passes[k]
        yield from (op for op in self.kept if self.depth[op] == k)

    def _use(self, k: int) -> _Use:
        """What pass k computes and loads, given what is kept."""
        computes, loads = set(), set()
        waiting = list(self._targets(k))
        while waiting:
            op = waiting.pop()
            if op in computes or op in loads:
                continue
            if self._is_input(op) or (op in self.kept and self.depth[op] < k):
                loads.add(op)
                continue
            computes.add(op)
            waiting.extend(self._banded_inputs(op))
        flops = math.fsum(self.ops[op].row_flops * self.ops[op].swept_rows for op in computes)
        needs = frozenset(i for op in computes for i in self._inputs[op] if i in self._stateful)
        gathers = frozenset(
            self._gathered[i] for op in computes for i in self._inputs[op] if i in self._gathered
        )
        finest_rows = max((self.ops[op].swept_rows for op in computes | loads), default=0)
        return _Use(frozenset(computes), frozenset(loads), needs, gathers, finest_rows, flops)

    def _recount(self, passes: Iterable[int]) -> None:
        self.forget_states()
        for k in passes:
            use = self._use(k)
            if use.computes or use.loads:
                self.uses[k] = use
            else:
                self.uses.pop(k, None)
            self.work.pop(k, None)

    def _users(self, op: int) -> list[int]:
        return [k for k, use in self.uses.items() if op in use.loads]

    def _reads(self, op: int) -> int:
        """How often all rows of a value are read: what is gathered, once for every band."""
        bands = (
            math.ceil(self._finest_rows(k) / self._band_rows(k))
            for k, use in self.uses.items()
            if op in use.gathers
        )
        return max(1, len(self._users(op)) + sum(bands))

    # Lifetimes

    def _last_uses(self) -> dict[int, int]:
        """The last pass that reads each kept value."""
        last = {op: self.depth[op] for op in self.kept}
        for k, use in self.uses.items():
            for op in (use.loads | use.gathers) & last.keys():
                last[op] = max(last[op], k)
        return last

    def _bytes(self, op: int) -> int:
        return self.ops[op].rows * self.ops[op].row_bytes

    def _stored(self) -> dict[int, list[int]]:
        """Peak bytes of kept values in each pass, for each store.

        A value that is written and one that is read for the last time share a pass row by row:
        it is fullest in its first band or in its last. Where bands are computed, the rows that a
        band writes count as its work.
        """
        count = len(self.stores)
        last = self._last_uses()
        through = {k: [0] * count for k in self.uses}
        born = {k: [0] * count for k in self.uses}
        dying = {k: [0] * count for k in self.uses}
        for op, store in self.kept.items():
            size = self._bytes(op)
            for k in range(self.depth[op], last[op] + 1):
                if k not in self.uses:
                    continue
                if self.depth[op] < k < last[op] or (k == last[op] and op in self.pinned):
                    through[k][store] += size
                elif k == self.depth[op]:
                    born[k][store] += size
                elif k == last[op]:
                    dying[k][store] += size
        stored = {}
        for k in self.uses:
            in_each = zip(through[k], born[k], dying[k], strict=True)
            stored[k] = [t + max(b, d) for t, b, d in in_each]
            share = self._band_share(k)
            last_band = round(born[k][0] * (1 - share) + dying[k][0] * share)
            stored[k][0] = through[k][0] + max(last_band, dying[k][0])
        return stored

    def _work(self, k: int) -> int:
        if k not in self.work:
            sweep, rows = self._pass_sweep(k), self._band_rows(k)
            here = {op for op, store in self.kept.items() if store == 0}
            written = {op for op in here if self.depth[op] == k}
            work = work_bytes(sweep, self.ops, rows, read=here - written, written=written)
            self.work[k] = work + self._weights_bytes(k)
        return self.work[k]

    def _band_share(self, k: int) -> float:
        """How much of a pass one band is."""
        return min(1.0, self._band_rows(k) / self._finest_rows(k))

    def _weights(self, k: int) -> set[str]:
        """Names of the weights that pass k reads."""
        resident = {each.op for each in self._states[k].prepares}
        return {w for op in self.uses[k].computes | resident for w in self.ops[op].op.weights}

    def _weights_bytes(self, k: int) -> int:
        """Of those that pass k loads."""
        return sum(self.loaded.get(w, 0) for w in self._weights(k))

    def _pass_sweep(self, k: int) -> Sweep:
        use = self.uses[k]
        return Sweep(
            self.ops,
            order=sorted(use.computes | use.loads),
            loads=use.loads,
            targets=set(self._targets(k)),
        )

    def _band_rows(self, k: int) -> int:
        return band_rows(self.rows, finest_rows=self._finest_rows(k), input_rows=self.rows_in)

    def _finest_rows(self, k: int) -> int:
        return self.uses[k].finest_rows

    def peak(self, store: int) -> int:
        """Peak bytes of a store."""
        stored = self._stored()
        return max(stored[k][store] + (self._beside(k) if store == 0 else 0) for k in self.uses)

    def _beside(self, k: int) -> int:
        """Bytes in the first store beside kept values, in pass k."""
        return self.standing_bytes + self._states[k].peak_bytes + self._work(k)

    # The search

    def _leave_out_free_ones(self) -> None:
        for op in sorted(self.kept):
            if op in self.pinned:
                continue
            before, resting = self._flops(), self._resting()
            undo = self._drop(op)
            if self._flops() > before * (1 + 1e-9) or self._resting() > resting:
                undo()

    def _flops(self) -> float:
        return math.fsum(use.flops for use in self.uses.values())

    def _resting(self) -> int:
        """Bytes times passes that they rest."""
        last = self._last_uses()
        return sum(self._bytes(op) * (last[op] - self.depth[op]) for op in self.kept)

    def _drop(self, op: int) -> _Undo:
        """Keep a value no more; returns what takes that back."""
        affected = {*self._users(op), self.depth[op]}
        undo = _Undo(self, op, self.kept[op], {k: self.uses.get(k) for k in affected})
        undo.work = {k: self.work[k] for k in affected if k in self.work}
        del self.kept[op]
        self._recount(affected)
        return undo

    def attempts(self) -> list[Search]:
        """Searches that came within every budget from here, each in another way.

        Step by step, computing again looks cheap until it adds up. So values are also moved
        only; and where much is computed again, all values from a size on are, and the room is
        left to smaller ones.
        """
        found = [a for drops in (True, False) if (a := self.copy()).fit(drops=drops)]
        if any(each._flops() <= self._flops() * (1 + 1e-9) for each in found):
            return found
        for size in sorted({self._bytes(op) for op in self.kept}):
            attempt = self.copy()
            for op in sorted(self.kept.keys() - self.pinned):
                if self._bytes(op) >= size:
                    attempt._drop(op)
            if attempt.fit():
                found.append(attempt)
        return found

    def fits(self) -> bool:
        """Whether every store is in its budget."""
        return all(self.peak(i) <= store.budget_bytes for i, store in enumerate(self.stores))

    def fit(self, *, drops: bool = True) -> bool:
        """Move values to later stores until every store is in budget.

        With `drops`, values may also be computed again.
        """
        while True:
            stored = self._stored()
            over = {
                (k, s): stored[k][s]
                + (self._beside(k) if s == 0 else 0)
                - self.stores[s].budget_bytes
                for k in self.uses
                for s in range(len(self.stores))
            }
            (worst, store), excess = max(over.items(), key=lambda item: (item[1], -item[0][0]))
            if excess <= 0:
                return True
            if not self._relieve(worst, store, stored, drops):
                return False

    def _relieve(self, k: int, store: int, stored: dict[int, list[int]], drops: bool) -> bool:
        """Take the cheapest step that frees bytes of `store` in pass k; False if there is none."""
        best: tuple[float, int, int | None] | None = None
        last = self._last_uses()
        for op in sorted(self.kept):
            if self.kept[op] != store or not self.depth[op] <= k <= last[op]:
                continue
            size = self._bytes(op)
            for seconds, target in self._ways(op, store, last[op], stored, drops):
                if best is None or seconds / size < best[0]:
                    best = (seconds / size, op, target)
        if best is None:
            return False
        _, op, target = best
        if target is None:
            self._drop(op)
        else:
            self.kept[op] = target
            for each in (self.depth[op], *self._users(op)):
                self.work.pop(each, None)
        return True

    def _ways(
        self, op: int, store: int, last: int, stored: dict[int, list[int]], drops: bool
    ) -> Iterable[tuple[float, int | None]]:
        """What it takes in seconds to move a value to a later store, or (None) to drop it."""
        size = self._bytes(op)
        for target in range(store + 1, len(self.stores)):
            alive = [k for k in self.uses if self.depth[op] <= k <= last]
            room = self.stores[target].budget_bytes - max(stored[k][target] for k in alive)
            if room >= size:
                yield size * (1 + self._reads(op)) / self.stores[target].bytes_per_second, target
                break
        if drops and op not in self.pinned:
            before = self._flops()
            undo = self._drop(op)
            added = self._flops() - before
            undo()
            yield added / self.flops_per_second, None

    # The result

    def schedule(self) -> Schedule:
        """The schedule of what is kept now."""
        stored = self._stored()
        last = self._last_uses()
        passes = tuple(self._pass(k, stored[k], last) for k in sorted(self.uses))
        moved = [0] * len(self.stores)  # values are written once, and read by every user
        for op, store in self.kept.items():
            moved[store] += self._bytes(op) * (1 + self._reads(op))
        if self.loaded:  # from the store behind the first
            moved[1] += sum(self._weights_bytes(k) for k in self.uses)
        moving_seconds = math.fsum(
            count / store.bytes_per_second for count, store in zip(moved, self.stores, strict=True)
        )
        return Schedule(
            ops=tuple(self.ops),
            passes=passes,
            stores=tuple(self.stores),
            kept=dict(self.kept),
            rows=self.rows,
            standing_bytes=self.standing_bytes,
            moved_bytes=sum(moved[1:]),
            plain_flops=math.fsum(
                op.row_flops * op.swept_rows + op.state_flops for op in self.ops
            ),
            seconds=(self._flops() + self._state_flops(range(len(self.ops))))
            / self.flops_per_second
            + moving_seconds,
        )

    def _pass(self, k: int, stored: list[int], last: dict[int, int]) -> Pass:
        use = self.uses[k]
        order = tuple(sorted(use.computes | use.loads))
        folds = tuple(self._folds.get(k, []))
        return Pass(
            order=order,
            loads=tuple(sorted(use.loads)),
            folds=folds,
            keeps=tuple(sorted(op for op in self.kept if self.depth[op] == k)),
            outputs=tuple(self._out_passes[k]),
            frees=tuple(sorted(op for op in self.kept if last[op] == k)),
            band_rows=self._band_rows(k),
            work_bytes=self._work(k),
            stored_bytes=tuple(stored),
            flops=use.flops + self._state_flops(each.op for each in self._states[k].prepares),
            weights=tuple(sorted(self._weights(k))),
            states=self._states[k],
        )

    def _state_flops(self, ops: Iterable[int]) -> float:
        return math.fsum(self.ops[op].state_flops for op in ops)


@dataclass
class _Undo:
    """Takes back that a value is kept no more."""

    search: Search
    op: int
    store: int
    uses: dict[int, _Use | None]
    work: dict[int, int] = field(default_factory=dict)

    def __call__(self) -> None:
        self.search.kept[self.op] = self.store
        self.search.forget_states()
        for k, use in self.uses.items():
            if use is None:
                self.search.uses.pop(k, None)
            else:
                self.search.uses[k] = use
            self.search.work.pop(k, None)
        self.search.work.update(self.work)


def _depths(ops: Sequence[SizedOp]) -> list[int]:
    depth: list[int] = []
    for sized in ops:
        own = max((depth[i] for i in sized.op.inputs), default=0)
        depth.append(own + (sized.op.kind in ("reduction", "gather")))
    return depth
