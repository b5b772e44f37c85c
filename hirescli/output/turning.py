"""Turning a picture upright, from spool to spool in bounded memory.

References:
    JEITA CP-3451, "Exif", 4.6.4 (Orientation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hirescli.output.spool import Spool

if TYPE_CHECKING:
    from numpy.typing import NDArray

# By EXIF orientation: whether rows and columns change places, and whether the result's rows,
# and columns, then run backwards. 1 is upright.
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_BAND_BYTES = 64 * 2**20
_READ_BYTES = 16 * 2**20


def turned_size(width_px: int, height_px: int, orientation: int) -> tuple[int, int]:
    """Width and height of the upright picture, from those stored."""
    swaps = orientation in TURNS and TURNS[orientation][0]
    return (height_px, width_px) if swaps else (width_px, height_px)


def turn(source: Spool, target: Spool, orientation: int) -> None:
    """Write `source` upright into `target`.

    Rows that become columns are read again for each band of the result: no more than a band and
    a few rows are held, and a photograph needs a few readings.

    Args:
        source: As stored in the file.
        target: Of `turned_size` and as many bits.
        orientation: Of EXIF, 2 to 8.
    """
    swaps, up, left = TURNS[orientation]
    step = max(1, _BAND_BYTES // target.row_bytes)
    for y0 in range(0, target.height_px, step):
        y1 = min(y0 + step, target.height_px)
        # The same rows, counted in the direction in which the source holds them.
        lo, hi = (target.height_px - y1, target.height_px - y0) if up else (y0, y1)
        rows = _columns(source, lo, hi) if swaps else source.read_rows(lo, hi - lo)
        rows = rows[::-1] if up else rows
        target.write_rows(y0, rows[:, ::-1] if left else rows)


def _columns(source: Spool, lo: int, hi: int) -> NDArray[Any]:
    """Columns lo to hi as rows: (hi - lo, source.height_px, 3)."""
    import numpy as np

    made = np.empty((hi - lo, source.height_px, 3), dtype=f"u{source.bits // 8}")
    step = max(1, _READ_BYTES // source.row_bytes)
    for y0 in range(0, source.height_px, step):
        n = min(step, source.height_px - y0)
        made[:, y0 : y0 + n] = source.read_rows(y0, n)[:, lo:hi].swapaxes(0, 1)
    return made
