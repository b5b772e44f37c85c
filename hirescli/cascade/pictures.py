"""Pictures that a stage reads beside its latents, row by row."""

from __future__ import annotations

import weakref
from pathlib import Path

import torch
from torch import Tensor

from hirescli.bands.engine import banded
from hirescli.bands.tensor import BandedTensor
from hirescli.output.pictures import shrunk_spool
from hirescli.output.resize import Resized
from hirescli.output.spool import Spool


def picture_rows(
    path: Path, width_px: int, height_px: int, *, level: int, dtype: torch.dtype,
    place: torch.device,
) -> BandedTensor:  # fmt: skip
    """A spool as an image (1, 3, H, W) in [0, 1], resized as its rows are read.

    Args:
        path: Of the spool.
        width_px: Of the stage that reads it.
        height_px: Of the same.
        level: Its rows for each row of the component that reads it.
        dtype: Of its numbers.
        place: Where they are computed with.
    """
    spool = Spool.open(path)
    picture = Resized(spool, width_px=width_px, height_px=height_px)

    def source(lo: int, hi: int) -> Tensor:
        return torch.from_numpy(picture.rows(lo, hi)).permute(2, 0, 1)[None].to(place, dtype)

    made = banded((1, 3, height_px, width_px), source, dtype=dtype, device=place, level=level)
    weakref.finalize(made.nodes[0], spool.close)
    return made


def size_alone(width_px: int, height_px: int) -> BandedTensor:
    """What a pipeline reads the size of a picture (1, 3, H, W) from, and nothing else."""

    def unread(lo: int, hi: int) -> Tensor:
        raise AssertionError("only its shape is wanted")

    return banded((1, 3, height_px, width_px), unread, dtype=torch.float32)


def no_larger(path: Path, smaller: Path, *, width_px: int, height_px: int) -> Path:
    """A spool that `Resized` can enlarge to a size: the one given, or one reduced without aliases.

    Args:
        path: Of the spool.
        smaller: Where the reduced one goes.
        width_px: Of the size.
        height_px: Of the size.
    """
    with Spool.open(path) as spool:
        fits = spool.width_px <= width_px and spool.height_px <= height_px
    if fits:
        return path
    return shrunk_spool(path, smaller, width_px=width_px, height_px=height_px)
