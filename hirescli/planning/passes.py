"""What a schedule is: passes, the stores that values rest in between them, and peaks. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hirescli.planning.states import PassStates
from hirescli.planning.sweep import Sweep
from hirescli.planning.trace import SizedOp

_STATELESS = PassStates()


@dataclass(frozen=True)
class Store:
    """A place for values between passes.

    Attributes:
        name: "device", "host" or "disk".
        budget_bytes: What may rest there; bands are worked on in the first store.
        bytes_per_second: Of moving a value there and of fetching it; the first store costs
            nothing.
        standing_bytes: What stands there already, beside the budget: for messages.
    """

    name: str
    budget_bytes: int
    bytes_per_second: float = math.inf
    standing_bytes: int = 0


@dataclass(frozen=True)
class Pass:
    """One sweep over all bands.

    Attributes:
        order: Operations that it computes, loads or folds, ascending.
        loads: Those that are loaded: inputs, and values kept by earlier passes.
        folds: Reductions that it finishes.
        keeps: Values that it puts into a store.
        outputs: Values that leave the component in it.
        frees: Kept values that nothing reads afterwards.
        band_rows: Rows of the pass's finest level in one band.
        work_bytes: Peak in the first store beside kept values.
        stored_bytes: Peak of the values kept, for each store.
        flops: Floating-point operations.
        weights: Names of the weights it reads.
        states: Its values without rows.
    """

    order: tuple[int, ...]
    loads: tuple[int, ...]
    folds: tuple[int, ...]
    keeps: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...]
    band_rows: int
    work_bytes: int
    stored_bytes: tuple[int, ...]
    flops: float
    weights: tuple[str, ...]
    states: PassStates = _STATELESS

    @property
    def first_store_bytes(self) -> int:
        """What it takes where bands are computed, beside what stands there all the time."""
        return self.stored_bytes[0] + self.work_bytes + self.states.peak_bytes

    def sweep(self, ops: Sequence[SizedOp]) -> Sweep:
        """Its bands, from the top."""
        targets = {*self.keeps, *self.outputs, *self.folds}
        return Sweep(ops, order=self.order, loads=self.loads, targets=targets)


@dataclass(frozen=True)
class Schedule:
    """What the engine executes and `hires plan` prints.

    Attributes:
        ops: The operations at their size.
        passes: In order.
        stores: Where values can rest; the first is where bands are computed.
        kept: The store of every kept value, as an index into `stores`.
        rows: Band height in rows of the component's input.
        standing_bytes: Of whole tensors that stand in the first store all the time.
        moved_bytes: Written to and read from the stores other than the first.
        plain_flops: What the whole-image call computes.
        seconds: Estimate of arithmetic and moves.
    """

    ops: tuple[SizedOp, ...] = field(repr=False)
    passes: tuple[Pass, ...] = field(repr=False)
    stores: tuple[Store, ...]
    kept: dict[int, int] = field(repr=False)
    rows: int
    standing_bytes: int
    moved_bytes: int
    plain_flops: float
    seconds: float

    @property
    def flops(self) -> float:
        """Floating-point operations of all passes."""
        return sum(each.flops for each in self.passes)

    @property
    def state_bytes(self) -> int:
        """The most that values without rows take in the first store."""
        return self.standing_bytes + max(each.states.peak_bytes for each in self.passes)

    @property
    def peak_bytes(self) -> dict[str, int]:
        """Peak of every store, by name."""
        first, *others = self.stores
        peaks = {first.name: self.standing_bytes + max(p.first_store_bytes for p in self.passes)}
        for index, store in enumerate(others, start=1):
            peaks[store.name] = max(each.stored_bytes[index] for each in self.passes)
        return peaks
