"""SDXL's real shape: what the schedule says of 16384 x 16384, and what a step measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sdxl as real
import torch

from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.bands.engine import banded
from hirescli.bands.graph import Graph, parameter_names
from hirescli.bands.tensor import naming_modules
from hirescli.evaluation.peak import can_reset
from hirescli.planning.passes import Store
from hirescli.planning.schedule import make_schedule
from hirescli.planning.trace import Trace

GB = 10**9
LATENTS = 2048  # rows and columns of the latents of 16384 px


def _read(lo: int, hi: int) -> torch.Tensor:
    raise AssertionError("a recorded input is never read")


@pytest.fixture(scope="module")
def sdxl() -> tuple[Trace, int]:
    """The trace of SDXL's UNet with LinFusion in bfloat16, and the bytes of its weights."""
    unet = real.meta_unet()
    with torch.device("meta"):
        mount(unet, LinFusionAdapter.for_unet(unet, mid_dim_scale=16))
        unet.to(dtype=torch.bfloat16).eval()
        sample = banded((1, 4, 64, 64), _read, dtype=torch.bfloat16, device="meta")
        with torch.no_grad(), naming_modules(unet):
            made = unet(sample, **real.inputs(torch.bfloat16), return_dict=False)[0]
    weight_bytes = sum(p.numel() * p.element_size() for p in unet.parameters())
    return Graph.of(made.nodes, parameter_names(unet)).trace, weight_bytes


def test_parameters_are_those_of_sdxl(sdxl: tuple[Trace, int]) -> None:
    """2.57 billion of the UNet, and the adapter's shifts."""
    _, weight_bytes = sdxl
    assert 2 * 2.56e9 < weight_bytes < 2 * 2.65e9


def test_16384_fits_a_card_of_8_gb(sdxl: tuple[Trace, int]) -> None:
    """With its weights on the device, and what finds no room there on the host."""
    trace, weight_bytes = sdxl
    stores = (
        Store("device", 8 * GB - weight_bytes),
        Store("host", 64 * GB, 20e9),
        Store("disk", 1 << 62, 5e8),
    )
    schedule = make_schedule(trace, LATENTS, LATENTS, stores=stores, flops_per_second=4e14)
    assert schedule.peak_bytes["device"] + weight_bytes <= 8 * GB
    assert schedule.flops == pytest.approx(schedule.plain_flops)
    assert schedule.plain_flops == pytest.approx(1.55e15, rel=0.05)  # of one denoiser call


def test_weights_on_the_host_leave_more_room(sdxl: tuple[Trace, int]) -> None:
    """Each pass loads what it reads: a fraction of all weights."""
    trace, weight_bytes = sdxl
    stores = (Store("device", 4 * GB), Store("host", 64 * GB, 20e9))
    schedule = make_schedule(
        trace, LATENTS, LATENTS, stores=stores, loads_weights=True, flops_per_second=4e14
    )
    assert schedule.peak_bytes["device"] <= 4 * GB < weight_bytes


STEP = """
import json, sys, time
import torch
import hirescli
import sdxl
from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.evaluation.peak import peak_memory

side, rows, compares = int(sys.argv[1]) // 8, int(sys.argv[2]), sys.argv[3] == "compared"
torch.set_num_threads(2)
unet, inputs = sdxl.random_unet(torch.bfloat16), sdxl.inputs(torch.bfloat16)
if not compares:
    mount(unet, LinFusionAdapter.for_unet(unet, mid_dim_scale=16).to(torch.bfloat16))
sample = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(2)).bfloat16()
with torch.no_grad():
    with hirescli.stream(unet):  # libraries set themselves up at the first call
        unet(sample[:, :, :8, :8], **inputs)
    plain = unet(sample, **inputs, return_dict=False)[0].float() if compares else None
    began = time.monotonic()
    with peak_memory() as peak, hirescli.stream(unet, rows=rows) as report:
        banded = unet(sample, **inputs, return_dict=False)[0]
print(json.dumps({
    "measured": peak.above_bytes,
    "predicted": report.peak_host_bytes + banded.numel() * banded.element_size(),
    "passes": report.passes,
    "seconds": time.monotonic() - began,
    "std": float(banded.float().std()),
    "error": compares and float((banded.float() - plain).square().mean().sqrt() / plain.std()),
}))
"""


def step(size_px: int, rows: int, how: str) -> dict[str, float]:
    """One call in a process of its own."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEP, str(size_px), str(rows), how],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])},
        capture_output=True,
        text=True,
        check=True,
    )
    made: dict[str, float] = json.loads(done.stdout)
    return made


@pytest.mark.slow
@pytest.mark.skipif(not can_reset(), reason="needs a peak that can be reset")
def test_a_base_step_takes_the_memory_that_is_predicted() -> None:
    """At 512 px with its own attention, in bfloat16 with random weights: 2.6 billion of them."""
    made = step(512, 16, "compared")
    assert made["passes"] > 100
    assert made["error"] < 0.03  # both round to 8 bits after every operation
    assert made["predicted"] == pytest.approx(made["measured"], rel=0.15), made


@pytest.mark.slow
@pytest.mark.skipif(not can_reset(), reason="needs a peak that can be reset")
def test_a_step_of_2048_px_takes_the_memory_that_is_predicted() -> None:
    """With LinFusion's attention, as a doubling asks for it."""
    made = step(2048, 32, "alone")
    assert made["passes"] > 50
    assert made["std"] > 0.1  # numbers, and not all the same
    assert made["predicted"] == pytest.approx(made["measured"], rel=0.15), made
