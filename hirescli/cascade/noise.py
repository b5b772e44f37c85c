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


def noise_like(
    latents: BandedTensor, generator: torch.Generator, folder: Path | None
) -> BandedTensor:
    """Standard normal noise of the shape (1, C, h, w) of `latents`, float32.

    It is drawn channel by channel: the stream of `torch.randn` over the whole where h * w is a
    multiple of 16, without ever holding more than one channel if there is a folder.

    Args:
        latents: What the noise is for.
        generator: The one source of random numbers of the image.
        folder: Where the noise rests on disk; None: in memory.
    """
    _, channels, height, width = latents.shape
    place = latents.device
    if folder is None:
        planes = torch.stack(
            [torch.randn(height, width, generator=generator) for _ in range(channels)]
        )[None]
        return banded(
            planes.shape, lambda lo, hi: planes[:, :, lo:hi].to(place), dtype=torch.float32,
            device=place,
        )  # fmt: skip
    stored = _Planes(folder, channels, height, width)
    for channel in range(channels):
        stored.write(channel, torch.randn(height, width, generator=generator))
    made = banded(
        (1, channels, height, width), lambda lo, hi: stored.rows(lo, hi).to(place),
        dtype=torch.float32, device=place,
    )  # fmt: skip
    weakref.finalize(made.nodes[0], stored.close)
    return made


class _Planes:
    """Channels one behind the other in a file without a name."""

    def __init__(self, folder: Path, channels: int, height: int, width: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        self._channels, self._height, self._width = channels, height, width
        self._row_bytes = 4 * width

    def write(self, channel: int, plane: Tensor) -> None:
        view = memoryview(plane.numpy().data).cast("B")
        place = channel * self._height * self._row_bytes
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
