"""Decoded rows on their way into a spool, known band by band by their digest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hirescli.bands.snapshot import StaleError, Tree
from hirescli.digest import digest
from hirescli.output.spool import Spool, quantise
from hirescli.vae.rows import Rows


class DecodedRows:
    """Takes decoded rows; the engine's `Saved`.

    Args:
        spool: Writable, of the picture's size.
        told: Called with the rows that stand, after each band.
    """

    def __init__(self, spool: Spool, told: Callable[[int], None]) -> None:
        self._spool = spool
        self._told = told
        self._sums: list[tuple[int, int, str]] = []

    def write(self, y0: int, rows: Rows) -> None:
        """Write rows from `y0`, (n, W, 3) in about [0, 1]; some may be given again."""
        levels = quantise(rows, self._spool.bits)
        while self._sums and self._sums[-1][1] > y0:
            self._sums.pop()
        self._spool.write_rows(y0, levels)
        self._sums.append((y0, y0 + len(levels), digest(levels.data)))
        self._told(y0 + len(levels))

    def state(self) -> Tree:
        """The digests of the bands in the spool, which is on the disk when this returns."""
        self._spool.flush()
        return {"sums": [list(each) for each in self._sums]}

    def restore(self, tree: Tree) -> None:
        """Check that the bands of another process are there."""
        self._sums = [(lo, hi, text) for lo, hi, text in tree["sums"]]
        for lo, hi, text in self._sums:
            if digest(self._spool.read_rows(lo, hi - lo).data) != text:
                raise StaleError(
                    f"{self._spool.path} has other rows {lo} to {hi} than were written"
                )
        if self._sums:
            self._told(self._sums[-1][1])


def holds(spool: Spool, tree: dict[str, Any]) -> bool:
    """Whether a spool holds the rows that `DecodedRows.state` spoke of."""
    try:
        DecodedRows(spool, lambda _: None).restore(tree)
    except StaleError:
        return False
    return True
