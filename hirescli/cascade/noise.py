"""The noise of a stage, from one generator on the CPU: a seed means the same on every device."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from hirescli.bands.engine import banded
from hirescli.bands.tensor import BandedTensor

# Numbers drawn at a time. Normal numbers are made in blocks of 16, the last block of a draw from
# numbers of its own: so all draws but the last are of whole blocks, and none is below one.
_BLOCK = 16
_DRAW = 1 << 20


def noise_like(
    latents: BandedTensor, generator: torch.Generator, folder: Path | None
) -> BandedTensor:
    """Standard normal noise of the shape (1, C, h, w) of `latents`, float32.

    The numbers are those of one `torch.randn` over the whole, wherever they rest.

    Args:
        latents: What the noise is for.
        generator: The one source of random numbers of the image.
        folder: Where the noise rests on disk; None: in memory.
    """
    shape, place = tuple(latents.shape), latents.device
    if folder is None:
        whole = torch.randn(shape, generator=generator)
        return banded(
            shape, lambda lo, hi: whole[:, :, lo:hi].to(place), dtype=torch.float32, device=place
        )
    stored = _Planes(folder, *shape[1:])
    first = 0
    for count in _draws(latents.numel()):
        stored.write(first, torch.randn(count, generator=generator))
        first += count
    made = banded(
        shape, lambda lo, hi: stored.rows(lo, hi).to(place), dtype=torch.float32, device=place
    )
    weakref.finalize(made.nodes[0], stored.close)
    return made


def _draws(count: int) -> list[int]:
    """How many numbers to draw at a time, so that they are those of one draw."""
    draws = [_DRAW] * (count // _DRAW)
    rest = count % _DRAW
    if rest and draws and rest < _BLOCK:
        draws[-1] += rest
    elif rest:
        draws.append(rest)
    return draws


class _Planes:
    """Channels one behind the other in a file without a name."""

    def __init__(self, folder: Path, channels: int, height: int, width: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._channels, self._height, self._width = channels, height, width
        self._row_bytes = 4 * width

    def write(self, first: int, numbers: Tensor) -> None:
        """Write numbers from the one with the index `first` on."""
        view = memoryview(numbers.numpy().data).cast("B")
        place = 4 * first
        while view:
            written = os.pwrite(self._file.fileno(), view, place)
            view, place = view[written:], place + written

    def rows(self, lo: int, hi: int) -> Tensor:
        made = torch.empty(1, self._channels, hi - lo, self._width)
        for channel in range(self._channels):
            view = memoryview(made[0, channel].numpy().data).cast("B")
            place = (channel * self._height + lo) * self._row_bytes
            count = os.preadv(self._file.fileno(), [view], place)
            assert count == len(view), "the file was written whole"
        return made

    def close(self) -> None:
        """Give the room back."""
        self._file.close()
