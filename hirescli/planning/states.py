"""Values without rows, over the passes of a schedule: when each is made, when it can go. No torch.

A reduction folds to a state, and "resident" operations compute with states alone: the scales of a
norm, or all the tokens of a text. A transformer has thousands of the latter, each of megabytes, so
none may stay longer than something reads it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hirescli.planning.trace import SizedOp


@dataclass(frozen=True)
class Prepared:
    """One resident operation, computed before the first band of a pass.

    Attributes:
        op: Index of the operation.
        frees: Values that nothing reads once it is computed.
    """

    op: int
    frees: tuple[int, ...]


@dataclass(frozen=True)
class PassStates:
    """The values without rows of one pass.

    Attributes:
        prepares: What is computed before its first band, in order.
        forgets: Values that nothing reads behind it.
        peak_bytes: The most that stands at a time, with the states that it folds.
    """

    prepares: tuple[Prepared, ...] = ()
    forgets: tuple[int, ...] = ()
    peak_bytes: int = 0


def pass_states(
    ops: Sequence[SizedOp], depth: Sequence[int], needs: Mapping[int, Collection[int]]
) -> dict[int, PassStates]:
    """What each pass prepares and forgets.

    Args:
        ops: All operations at their size.
        depth: Of each: the first pass that can compute it.
        needs: For each pass, the values without rows that its bands read.
    """
    lives = _Lives(ops, depth, sorted(needs), needs)
    alive: set[int] = set()
    return {k: lives.of_pass(k, alive) for k in lives.passes}


class _Lives:
    """When values without rows are made, and by whom each is read last."""

    def __init__(
        self,
        ops: Sequence[SizedOp],
        depth: Sequence[int],
        passes: Sequence[int],
        needs: Mapping[int, Collection[int]],
    ) -> None:
        self.passes = passes
        self._ops, self._needs = ops, needs
        self._last: dict[int, int] = {}  # the last pass that reads a value
        for k in passes:
            self._last.update(dict.fromkeys(needs[k], k))
        self._made: dict[int, list[int]] = {k: [] for k in passes}
        self._folded: dict[int, list[int]] = {}
        # Readers come behind what they read: backwards, every reader is known before.
        for op in range(len(ops) - 1, -1, -1):
            if op not in self._last:
                continue
            if ops[op].op.kind == "reduction":
                self._folded.setdefault(depth[op] - 1, []).append(op)
            else:
                self._place(op, passes[bisect_left(passes, depth[op])])
        for made in self._made.values():
            made.reverse()

    def _place(self, op: int, k: int) -> None:
        self._made[k].append(op)
        for source in self._ops[op].op.inputs:
            self._last[source] = max(self._last.get(source, 0), k)

    def of_pass(self, k: int, alive: set[int]) -> PassStates:
        """Of pass k; `alive` is what stands before it, and then what stands behind it."""
        prepares = []
        now_bytes = peak_bytes = self._bytes(alive)
        freed = self._freed_within(k)
        for op in self._made[k]:
            frees = tuple(sorted(freed.get(op, ())))
            prepares.append(Prepared(op, frees))
            now_bytes += self._ops[op].state_bytes
            peak_bytes = max(peak_bytes, now_bytes + self._ops[op].scratch_bytes)
            now_bytes -= self._bytes(frees)
            alive.add(op)
            alive.difference_update(frees)
        folded = self._folded.get(k, ())
        alive.update(folded)
        peak_bytes = max(peak_bytes, now_bytes + self._bytes(folded))
        forgets = tuple(sorted(op for op in alive if self._last[op] <= k))
        alive.difference_update(forgets)
        return PassStates(tuple(prepares), forgets, peak_bytes)

    def _freed_within(self, k: int) -> dict[int, list[int]]:
        """What nothing reads any more behind each operation that pass k prepares."""
        readers = {
            source: op
            for op in self._made[k]
            for source in self._ops[op].op.inputs
            if self._last[source] == k and source not in self._needs[k]
        }
        freed: dict[int, list[int]] = {}
        for source, op in readers.items():
            freed.setdefault(op, []).append(source)
        return freed

    def _bytes(self, values: Collection[int]) -> int:
        return sum(self._ops[op].state_bytes for op in values)
