"""Noise in memory and on disk: the numbers of one draw over the whole, at any size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hirescli.bands.engine import Engine, banded
from hirescli.bands.tensor import BandedTensor
from hirescli.cascade import noise
from hirescli.planning.schedule import Store


@pytest.mark.parametrize("draw", [16, 48, 1 << 20])
@pytest.mark.parametrize("size", [(4, 4), (8, 6), (17, 12), (5, 5), (16, 16), (1, 13), (9, 16)])
def test_noise_is_that_of_one_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], draw: int
) -> None:
    monkeypatch.setattr(noise, "_DRAW", draw)
    shape = (1, 4, *size)
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    like = banded(shape, lambda lo, hi: torch.zeros(1, 4, hi - lo, size[1]), dtype=torch.float32)
    for folder in (None, tmp_path):
        generator = torch.Generator().manual_seed(7)
        made = noise.noise_like(like, generator, folder)
        assert torch.equal(_rows(made), wanted)
        after = torch.randn(8, generator=generator)  # the next stage draws on from there
        assert torch.equal(after, torch.randn(8, generator=_after(shape)))
    assert not list(tmp_path.iterdir())  # a file without a name


def _rows(made: BandedTensor) -> torch.Tensor:
    (whole,) = Engine((Store("device", 10**9),), rows=3).whole([made])
    return whole


def _after(shape: tuple[int, ...]) -> torch.Generator:
    generator = torch.Generator().manual_seed(7)
    torch.randn(shape, generator=generator)
    return generator
