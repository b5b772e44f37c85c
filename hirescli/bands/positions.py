"""SD3's table of positions, by rows: cut out of its middle, or stretched where it ends.

Diffusers cuts the part of a picture out of the middle of a square table, and refuses pictures
larger than that. At 8192² pixels that part takes gigabytes, so each band gets its own rows. A side
that is longer than the table has all of the table stretched over it, linearly between its entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from diffusers.models.embeddings import PatchEmbed
from torch import Tensor, nn

from hirescli.bands.record import record_local
from hirescli.bands.tensor import BandedTensor, Grid, Node, Span
from hirescli.planning.trace import Window


@contextmanager
def positions_by_rows(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[None]:
    """While a module is recorded, its tables of positions are read row by row.

    Args:
        module: Whose parts are searched for tables.
        args: Of the call; the first is the image (1, C, H, W), banded.
        kwargs: Of the call.
    """
    sample = args[0] if args else next(iter(kwargs.values()), None)
    tables = [m for m in module.modules() if isinstance(m, PatchEmbed) and m.pos_embed_max_size]
    if not isinstance(sample, BandedTensor) or sample.ndim != 4:
        tables = []
    for each in tables:
        each.cropped_pos_embed = _Positions(each, sample)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for each in tables:
            del each.cropped_pos_embed


class _Positions:
    """Stands in for `PatchEmbed.cropped_pos_embed`."""

    def __init__(self, embed: PatchEmbed, sample: Any) -> None:
        self._embed, self._sample = embed, sample

    def __call__(self, height: int, width: int) -> BandedTensor:
        """Positions (1, N, C) of a picture's patches."""
        patch = self._embed.patch_size
        size = height // patch, width // patch
        return BandedTensor.of([self._positions(node, size, patch) for node in self._sample.nodes])

    def _positions(self, image: Node, size: tuple[int, int], patch: int) -> Node:
        side, table = self._embed.pos_embed_max_size, self._embed.pos_embed
        assert image.grid is not None
        assert isinstance(table, Tensor)

        def kernel(_: list[Any], span: Span) -> Tensor:
            rows = table_rows(table.view(side, side, -1), size, span.lo, span.hi)
            return rows.flatten(0, 1)[None].to(image.device)

        return record_local(
            None, (image,), {},
            name="positions", shape=torch.Size((1, size[0] * size[1], table.shape[-1])),
            dtype=table.dtype, kernel=kernel,
            grid=Grid(*size, image.grid.level * Fraction(1, patch), 1),
            reach=Window(patch, patch), width_reach=Window(patch, patch),
        )  # fmt: skip


def table_rows(table: Tensor, size: tuple[int, int], lo: int, hi: int) -> Tensor:
    """Rows lo to hi of the positions of a picture.

    Args:
        table: (side, side, C).
        size: Rows and columns of the picture, in patches.
        lo: The first row.
        hi: The row behind the last.

    Returns:
        (hi - lo, columns, C) in the table's dtype.
    """
    down = _along(table, size[0], lo, hi)
    return _along(down.transpose(0, 1), size[1], 0, size[1]).transpose(0, 1)


def _along(table: Tensor, size: int, lo: int, hi: int) -> Tensor:
    """Entries lo to hi of `size` along the first dimension."""
    side = table.shape[0]
    if size <= side:
        first = (side - size) // 2
        return table[first + lo : first + hi]
    # The middles of `size` equal parts of the table, as `interpolate` has them unaligned.
    places = (torch.arange(lo, hi, dtype=torch.float64) + 0.5) * side / size - 0.5
    places = places.clamp(0, side - 1)
    below = places.floor().long()
    above = (below + 1).clamp(max=side - 1)
    share = (places - below).to(torch.float32).to(table.device)[:, None, None]
    return torch.lerp(table[below].float(), table[above].float(), share).to(table.dtype)
