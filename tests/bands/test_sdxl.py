"""SDXL's real shape, without weights: what the schedule says of 16384 x 16384."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.bands.engine import banded
from hirescli.bands.graph import Graph, parameter_names
from hirescli.bands.tensor import naming_modules
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
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),  # type: ignore[arg-type]
            attention_head_dim=(5, 10, 20),  # type: ignore[arg-type]
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        mount(unet, LinFusionAdapter.for_unet(unet, mid_dim_scale=16))
        unet.to(dtype=torch.bfloat16).eval()
        sample = banded((1, 4, 64, 64), _read, dtype=torch.bfloat16, device="meta")
        added = {
            "text_embeds": torch.zeros(1, 1280, dtype=torch.bfloat16),
            "time_ids": torch.zeros(1, 6, dtype=torch.bfloat16),
        }
        text = torch.zeros(1, 77, 2048, dtype=torch.bfloat16)
        time = torch.tensor(1.0)
        with torch.no_grad(), naming_modules(unet):
            made = unet(sample, time, text, added_cond_kwargs=added, return_dict=False)[0]
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
