"""Tiny FLUX and SD3 transformers with fixed weights, and their inputs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn

TEXT_TOKENS = 5


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def with_fixed_weights(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        spread = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.normal_(0, spread, generator=generator)
    return module.eval()


def flux(**changes: Any) -> FluxTransformer2DModel:
    """One dual and two single blocks, 2 heads of 16 channels."""
    config = {
        "in_channels": 4, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 6,
        "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    return with_fixed_weights(FluxTransformer2DModel(**{**config, **changes}))


def flux_ids(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)
    return ids.flatten(0, 1).to(dtype)


def flux_inputs(rows: int, columns: int, batch: int = 1) -> dict[str, Any]:
    return {
        "hidden_states": drawn(batch, rows * columns, 4),
        "encoder_hidden_states": drawn(batch, TEXT_TOKENS, 8, seed=2),
        "pooled_projections": drawn(batch, 6, seed=3),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": flux_ids(rows, columns),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


def sd3(**changes: Any) -> SD3Transformer2DModel:
    """Three blocks, the first with a second attention, the last without text after it."""
    config = {
        "sample_size": 16, "patch_size": 2, "in_channels": 4, "num_layers": 3,
        "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 8,
        "caption_projection_dim": 32, "pooled_projection_dim": 6, "out_channels": 4,
        "pos_embed_max_size": 24, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    }  # fmt: skip
    return with_fixed_weights(SD3Transformer2DModel(**{**config, **changes}))


def sd3_inputs(rows: int, columns: int, batch: int = 1) -> dict[str, Any]:
    return {
        "hidden_states": drawn(batch, 4, 2 * rows, 2 * columns),
        "encoder_hidden_states": drawn(batch, TEXT_TOKENS, 8, seed=2),
        "pooled_projections": drawn(batch, 6, seed=3),
        "timestep": torch.full((batch,), 500.0),
    }


@torch.no_grad()
def made(transformer: nn.Module, inputs: dict[str, Any]) -> Tensor:
    (sample,) = transformer(**inputs, return_dict=False)
    assert isinstance(sample, Tensor)
    return sample
