"""SDXL's UNet at its real shape."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

TEXT_TOKENS, TEXT_CHANNELS, POOLED_CHANNELS = 77, 2048, 1280
CONFIG: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": TEXT_CHANNELS,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def meta_unet() -> UNet2DConditionModel:
    """The module without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIG).eval()


@torch.no_grad()
def random_unet(dtype: torch.dtype) -> UNet2DConditionModel:
    """The module with random weights that keep variance, drawn in seconds."""
    unet = meta_unet().to(dtype).to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    # One draw of noise for all weights: each takes its numbers from another place of it.
    noise = torch.randn(1 << 24, generator=generator).to(dtype)
    for number, (name, parameter) in enumerate(unet.named_parameters()):
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        start = (number * 7919) % (1 << 20)
        repeats = -(-parameter.numel() // (noise.numel() - start))
        drawn = noise[start:].repeat(repeats)[: parameter.numel()].view_as(parameter)
        torch.mul(drawn, parameter[0].numel() ** -0.5, out=parameter)
    return unet


def inputs(dtype: torch.dtype) -> dict[str, Any]:
    """What the module takes beside the sample."""
    generator = torch.Generator().manual_seed(1)
    return {
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(
            1, TEXT_TOKENS, TEXT_CHANNELS, generator=generator
        ).to(dtype),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, POOLED_CHANNELS, generator=generator).to(dtype),
            "time_ids": torch.tensor([[1024, 1024, 0, 0, 1024, 1024]], dtype=dtype),
        },
    }
