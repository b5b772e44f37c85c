"""Values without rows: made before they are read, gone when nothing reads them any more."""

from __future__ import annotations

from hirescli.planning.states import PassStates, Prepared, pass_states
from hirescli.planning.trace import Op, SizedOp, Trace


def sized() -> tuple[SizedOp, ...]:
    """Two reductions, each with a chain of values made of it; the last reads both chains."""
    ops = (
        Op("input", "input", px=1),
        Op("reduction", "sum", (0,), state_numbers=10, itemsize=1),
        Op("resident", "a", (1,), state_numbers=100, itemsize=1),
        Op("resident", "b", (2,), state_numbers=1000, itemsize=1),
        Op("local", "mul", (0, 3), px=1),
        Op("reduction", "sum", (4,), state_numbers=10, itemsize=1),
        Op("resident", "c", (5, 2), state_numbers=100, itemsize=1),
        Op("local", "add", (4, 6), px=1),
    )
    return Trace(ops, (7,)).at(4, 4)


def test_what_is_read_later_stays_and_the_rest_goes() -> None:
    made = pass_states(sized(), [0, 1, 1, 1, 1, 2, 2, 2], {0: [], 1: [3], 2: [6]})
    assert made[0] == PassStates((), (), 10)
    assert made[1].prepares == (Prepared(2, (1,)), Prepared(3, ()))  # 2 is read in the last pass
    assert made[1].forgets == (3,)
    assert made[2].prepares == (Prepared(6, (2, 5)),)
    assert made[2].forgets == (6,)


def test_the_peak_is_what_stands_at_a_time() -> None:
    made = pass_states(sized(), [0, 1, 1, 1, 1, 2, 2, 2], {0: [], 1: [3], 2: [6]})
    assert made[1].peak_bytes == 100 + 1000 + 10
    assert made[2].peak_bytes == 10 + 100 + 100


def test_a_value_that_rows_read_again_waits_for_them() -> None:
    made = pass_states(sized(), [0, 1, 1, 1, 1, 2, 2, 2], {0: [], 1: [3], 2: [3, 6]})
    assert made[1].forgets == ()
    assert made[2].forgets == (3, 6)
