"""Snapshots: a call of the engine under way, so that it goes on from there bit for bit.

A snapshot is taken at the end of a band. It holds what the next band reads: rows that wait,
states that grow, values of reductions, and what stores and sinks have been given. Nothing is
computed again or in other portions, so the bits of what follows are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from hirescli.bands.reductions import Spread

# What is saved: dictionaries with text keys, lists, numbers, text, None, tensors. Read back,
# tensors are functions that read them.
Tree = Any


class StaleError(Exception):
    """A snapshot or record that nothing can go on from: what it speaks of is gone or damaged."""


class Snapshots(Protocol):
    """Where the snapshots of one call go; only the latest is of use."""

    @property
    def prefix(self) -> str:
        """Begins the names of files that snapshots refer to."""

    @property
    def halvings(self) -> Mapping[tuple[int, int], int]:
        """The band height after memory ran out, by pass and progress within it.

        It is part of what the bits depend on.
        """

    def latest(self) -> Tree | None:
        """The latest snapshot, if there is a whole one."""

    def due(self, count_bytes: int) -> bool:
        """Whether enough work was done since the latest to write so many bytes."""

    def save(self, tree: Tree) -> bool:
        """Write a snapshot in place of the latest; whether it is there, else the latest is."""

    def drop(self) -> None:
        """Forget the latest snapshot: what it speaks of goes."""

    def stale(self, reason: str) -> None:
        """As `drop`, and say why: nothing can go on from it."""

    def halved(self, number: int, progress: int, rows: int) -> None:
        """Remember that bands of a pass have so many rows from a place on."""


class Saved(Protocol):
    """What takes bands, and must have them when a call goes on."""

    def state(self) -> Tree:
        """What `restore` needs."""

    def restore(self, tree: Tree) -> None:
        """Be as when `state` was asked.

        Raises:
            StaleError: If that cannot be.
        """


class Record(Snapshots, Protocol):
    """What a journal knows of one call."""

    def recall(self) -> Tree | None:
        """What `finish` was given, if the call was finished and its record is whole."""

    def finish(self, tree: Tree) -> None:
        """Remember the results; the snapshots of the call are of no use any more."""


class Journal(Protocol):
    """Remembers calls, so that the same calls in the same order are answered."""

    def call(self, name: str) -> Record:
        """Of the next call of that name."""


@dataclass(frozen=True)
class Resumable:
    """A call that can go on after its process ended.

    Attributes:
        snapshots: Of it.
        outputs: What takes its results.
    """

    snapshots: Snapshots
    outputs: Sequence[Saved]


def tree_of_state(state: Any) -> Tree:
    """The state of a reduction as a tree."""
    if isinstance(state, Spread):
        return {"count": state.count, "mean": state.mean, "squares": state.squares}
    assert isinstance(state, Tensor), f"unknown state {type(state).__name__}"
    return state


def state_of_tree(tree: Tree) -> Any:
    """The state that `tree_of_state` was given, from what was read back."""
    if isinstance(tree, dict):
        return Spread(tree["count"], tree["mean"](), tree["squares"]())
    return tree()
