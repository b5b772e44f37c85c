"""What CLEAR's attention takes on a CPU beside its inputs and its output. No torch.

It computes squares of queries (`hirescli.attention.clear_tiles`), as many at a time as a number
of bytes of copied keys allows: whatever the height of a band, at most that stands.
"""

from __future__ import annotations

# Queries on a side of a square. A trade: it has the keys of (TILE + 2 window - 2)^2 tokens.
TILE = 16
# Of the keys and values that are copied at a time. Four times as many were no quicker, and left
# the heap with up to 90 MB of holes.
PIECE_BYTES = 1 << 24
_FLOAT_BYTES = 4
_SPARE = 1.25  # for what kernels lay out anew for themselves


def clear_scratch_bytes(*, width: int, px: float, itemsize: int, reach: int) -> int:
    """Peak of one call, however many rows.

    Args:
        width: Columns of tokens.
        px: Numbers of a token, of all heads.
        itemsize: Bytes of one.
        reach: Rows, and columns, that a query sees: 2 window - 1.
    """
    seen = (TILE + reach - 1) ** 2 / TILE**2  # keys for each query of a square
    key_bytes = 2 * itemsize * seen  # of each number of the queries, with the values
    # Those at the left and right border see other keys and are computed by themselves.
    numbers = TILE * max(TILE, width - 2 * TILE) * px
    numbers = min(numbers, PIECE_BYTES / key_bytes)
    # First queries, keys and output; then queries, and of two parts the outputs, which are
    # merged into a third in float32.
    attending = key_bytes + 2 * itemsize
    merging = 3 * itemsize + (3 * _FLOAT_BYTES if itemsize < _FLOAT_BYTES else itemsize)
    return int(_SPARE * numbers * max(attending, merging))
