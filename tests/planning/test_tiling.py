"""Diffusers' own tiled decoding: its tiles, and what it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from hirescli.evaluation.peak import can_reset
from hirescli.models.registry import find_card
from hirescli.models.traces import record_module
from hirescli.planning.passes import Store
from hirescli.planning.tiling import Tiling, tiled_schedule

ROOT = Path(__file__).parents[2]
CARD = find_card("sd15")
SHAPE: dict[str, Any] = {
    "block_out_channels": (32, 64, 64, 64), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 1, "sample_size": 256,
}  # fmt: skip
PROCESS = """
import json, sys
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hirescli.evaluation.components import randomised
from hirescli.evaluation.peak import peak_memory
from hirescli.vae.rows import decode_tiled

torch.set_num_threads(1)
height, width, shape = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
module = randomised(AutoencoderKL(**shape))
decode_tiled(module, torch.randn(1, 4, 8, 8), rows=512, sink=lambda y, rows: None)
with peak_memory() as peak:
    latents = torch.randn(1, 4, height, width)
    decode_tiled(module, latents, rows=512, sink=lambda y, rows: None)
print(peak.above_bytes)
"""


def tiling(rows: int, width: int) -> Tiling:
    return Tiling(rows=rows, width=width, tile=32, factor=8, latent_channels=4, itemsize=4)


def schedule(rows: int, width: int) -> Any:
    with torch.device("meta"):
        trace = record_module(AutoencoderKL(**SHAPE).eval(), "decoder", CARD, pools=False)
    return tiled_schedule(
        trace, tiling(rows, width), stores=[Store("host", 1 << 62)], flops_per_second=1e11
    )


@pytest.mark.parametrize("size", [(32, 32), (24, 32), (33, 8), (64, 80), (100, 31)], ids=str)
def test_arithmetic_is_what_torch_counts(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        module = AutoencoderKL(**SHAPE).eval()
        module.enable_tiling()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            (made,) = module.decode(torch.empty(1, 4, *size), return_dict=False)
    assert made.shape[2:] == (8 * size[0], 8 * size[1])
    planned = schedule(*size)
    assert planned.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert planned.seconds == planned.flops / 1e11


@pytest.mark.slow
@pytest.mark.skipif(not can_reset(), reason="needs a peak that can be reset")
@pytest.mark.parametrize("size", [(32, 32), (120, 80)], ids=str)
def test_it_takes_what_is_planned(size: tuple[int, int]) -> None:
    """Blocks are mapped by themselves, as those of tiles of real models are for their size."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESS, *map(str, size), json.dumps(SHAPE)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        | {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    measured, planned = int(done.stdout), schedule(*size).peak_bytes["host"]
    assert measured == pytest.approx(planned, rel=0.15), (measured, planned)
