"""What diffusers' own tiled decoding takes: it holds the whole picture. No torch.

Squares of the latents, each a quarter over its neighbours, are decoded one after the other; all
decoded ones stay until they are blended and put together to rows, and these to the picture.

References:
    `AutoencoderKL.tiled_decode` in diffusers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from hirescli.planning.passes import Pass, Schedule, Store
from hirescli.planning.schedule import make_schedule
from hirescli.planning.trace import SizedOp, Trace

TILED_ROWS = 512  # pixel rows that go to the spool at a time
_STRIDE = 0.75  # of a tile, from one to the next
_CHANNELS = 3  # red, green, blue
_FLOAT_BYTES = 4
# Bytes for each pixel of the rows that go to the spool: float rows and their copies.
_ROW_PX_BYTES = 48
# What a plain call of the decoder takes against the engine's: normalised and activated values
# are copies. Measured on a CPU: 1.2, holes of the allocator not counted, which small tiles leave.
_PLAIN_WORK = 1.25


@dataclass(frozen=True)
class Tiling:
    """Latents that are decoded in tiles.

    Attributes:
        rows, width: Of the latents.
        tile: Side of a tile in latent pixels; latents no larger than one are decoded whole.
        factor: Pixels for each latent pixel, on a side.
        latent_channels: Of the latents.
        itemsize: Bytes of a number in the autoencoder's dtype.
    """

    rows: int
    width: int
    tile: int
    factor: int
    latent_channels: int
    itemsize: int

    @property
    def whole(self) -> bool:
        """Whether nothing is cut."""
        return max(self.rows, self.width) <= self.tile

    def sides(self, size: int) -> list[int]:
        """Sides of the tiles along latents of this size; the last ones are cut off."""
        if self.whole:
            return [size]
        return [min(self.tile, size - at) for at in range(0, size, int(self.tile * _STRIDE))]

    @property
    def picture_bytes(self) -> int:
        """The whole picture."""
        return self._px_bytes(self.rows * self.width)

    @property
    def tiles_bytes(self) -> int:
        """All decoded tiles."""
        return self._px_bytes(sum(self.sides(self.rows)) * sum(self.sides(self.width)))

    @property
    def latents_bytes(self) -> int:
        """The whole latents: in float32, for the decoder, and without their scale."""
        px = self.rows * self.width * self.latent_channels
        return px * (_FLOAT_BYTES + 2 * self.itemsize)

    def _px_bytes(self, latent_px: int) -> int:
        return latent_px * self.factor**2 * _CHANNELS * self.itemsize

    def peak_bytes(self, tile_bytes: int) -> int:
        """Of one call, where a tile's work is so much.

        While tiles are decoded they stand beside the work on the last; then beside their rows
        and the picture; then the picture stands beside the rows that go to the spool.
        """
        rows_px = min(TILED_ROWS, self.rows * self.factor) * self.width * self.factor
        joined = 0 if self.whole else 2 * self.picture_bytes
        return self.latents_bytes + max(
            self.tiles_bytes + max(tile_bytes, joined),
            self.picture_bytes + rows_px * _ROW_PX_BYTES,
        )


def tiled_schedule(
    trace: Trace, tiling: Tiling, *, stores: Sequence[Store], flops_per_second: float
) -> Schedule:
    """The schedule of a tiled decoder: one pass over one band, which is the picture.

    Args:
        trace: Of the decoder; attention reads all keys of its tile.
        tiling: Of its latents.
        stores: The first is where it computes.
        flops_per_second: Of the machine.
    """
    sides = product(tiling.sides(tiling.rows), tiling.sides(tiling.width))
    flops = math.fsum(count * _flops(trace.at(*side)) for side, count in Counter(sides).items())
    ops = trace.at(tiling.rows, tiling.width)
    only = Pass(
        order=(), loads=(), folds=(), keeps=(), outputs=(), frees=(),
        band_rows=tiling.rows * tiling.factor,
        work_bytes=tiling.peak_bytes(_work_bytes(trace, tiling)),
        stored_bytes=(0,) * len(stores), flops=flops, weights=(),
    )  # fmt: skip
    return Schedule(
        ops=ops, passes=(only,), stores=tuple(stores), kept={}, rows=tiling.rows, standing_bytes=0,
        moved_bytes=0, plain_flops=_flops(ops), seconds=flops / flops_per_second,
    )  # fmt: skip


def _work_bytes(trace: Trace, tiling: Tiling) -> int:
    """Of decoding one tile by a plain call: from what the engine takes with all the room."""
    rows, width = min(tiling.tile, tiling.rows), min(tiling.tile, tiling.width)
    room = [Store("host", 1 << 62)]
    made = make_schedule(trace, rows, width, stores=room, rows=rows)
    return int(_PLAIN_WORK * made.peak_bytes["host"])


def _flops(ops: Iterable[SizedOp]) -> float:
    return math.fsum(op.row_flops * op.swept_rows for op in ops)
