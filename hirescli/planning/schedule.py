"""The schedule of a component at a size, under budgets. No torch.

A reduction splits a computation: what follows it needs all rows before it. So operations have a
*depth*, the number of reductions on the longest way to them, and pass k finishes the reductions
of depth k + 1. A value that later passes need is kept in a store, or computed again from what
is kept; which one, and in which store, is searched for under the budget (`search.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hirescli.errors import RequestError
from hirescli.planning.passes import Schedule, Store
from hirescli.planning.search import Search
from hirescli.planning.trace import Trace
from hirescli.units import format_bytes

_WORK_FRACTION = 0.5  # of the first store that bands may take where fewer rows would do
# What a band may take on a CPU: values then mostly fit into its caches.
CPU_WORK_BYTES = 48 * 10**6


class BudgetError(RequestError):
    """A budget that cannot hold one band.

    Attributes:
        least_bytes: The least that can, with what stands there already.
    """

    def __init__(self, message: str, least_bytes: int) -> None:
        super().__init__(message)
        self.least_bytes = least_bytes


def make_schedule(
    trace: Trace,
    rows_in: int,
    width_in: int,
    *,
    stores: Sequence[Store],
    rows: int | None = None,
    most_work_bytes: int | None = None,
    keep_in: int | None = None,
    loads_weights: bool = False,
    flops_per_second: float = 1e11,
) -> Schedule:
    """Schedule a component at a size under budgets.

    Args:
        trace: Of the component.
        rows_in: Rows of its input at level 1.
        width_in: Columns of that.
        stores: The first is where bands are computed; later ones are slower.
        rows: Band height in rows of the input; None: the highest power of two that leaves
            room for stores.
        most_work_bytes: What a band may take then; higher ones are not quicker.
        keep_in: Keep every value in this store, an index; None: as the budgets ask.
        loads_weights: Whether weights rest on the host and each pass loads those that it reads;
            else they lie where bands are computed, beside the budget.
        flops_per_second: Of the machine, to weigh arithmetic against moves.

    Raises:
        BudgetError: If not even bands of one row fit.
    """
    ops = trace.at(rows_in, width_in)
    loaded = trace.parameter_bytes if loads_weights else {}
    search = Search(
        ops, trace.outputs, stores, flops_per_second, rows_in, loaded, trace.constant_bytes
    )
    search.start(keep_in)
    most_work = min(stores[0].budget_bytes * _WORK_FRACTION, most_work_bytes or math.inf)
    heights = [rows] if rows else _heights(rows_in)
    for height in heights:
        search.set_rows(height)
        if search.widest_work() > most_work and height != heights[-1]:
            continue
        if keep_in is not None:
            attempts = [search] if search.fits() else []
        else:
            attempts = search.attempts()
        if attempts:
            return min((a.schedule() for a in attempts), key=lambda schedule: schedule.seconds)
    if keep_in is None:
        search.fit()  # as far as it goes
    raise _too_small(search, height, stores)


def _heights(rows_in: int) -> list[int]:
    """Band heights to try: powers of two, the first at least the whole height if that is low."""
    highest = 1 << max(0, (rows_in - 1).bit_length())
    return [highest >> k for k in range(highest.bit_length())]


def _too_small(search: Search, rows: int, stores: Sequence[Store]) -> BudgetError:
    for index, store in enumerate(stores):
        needed = search.peak(index)
        if needed > store.budget_bytes:
            needed = _rounded_up(needed + store.standing_bytes)
            budget = store.budget_bytes + store.standing_bytes
            return BudgetError(
                f"needs at least {format_bytes(needed)} on the {store.name} in bands "
                f"of {rows} rows, the budget is {format_bytes(budget)}; use a higher budget"
                + ("" if rows == 1 else " or fewer rows"),
                needed,
            )
    raise AssertionError("the schedule fits")


def _rounded_up(count_bytes: int) -> int:
    """A little more, so that the figure that is shown works when it is given."""
    unit = int(10 ** max(0, len(str(count_bytes)) - 3))
    return (count_bytes // unit + 2) * unit
