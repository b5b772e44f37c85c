"""FLUX's real width with one block of each kind and random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

TEXT_TOKENS = 512
# Weights are taken from so many drawn numbers, over and over: no multiple of a row of any.
_POOL = (1 << 22) + 15


@torch.no_grad()
def random_blocks(dtype: torch.dtype) -> Any:
    """A dual and a single block between FLUX's own embeddings; 24 heads of 128 channels."""
    with torch.device("meta"):
        module = FluxTransformer2DModel(guidance_embeds=True, num_layers=1, num_single_layers=1)
    module = module.to_empty(device="cpu").to(dtype)
    # Uniform numbers are drawn in a third of the time of normal ones.
    pool = torch.empty(_POOL).uniform_(-1.7, 1.7, generator=torch.Generator().manual_seed(0))
    for parameter in module.parameters():
        spread = 0.02 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        numbers = (spread * pool).to(dtype)
        for part in parameter.view(-1).split(_POOL):
            part.copy_(numbers[: len(part)])
    return module.eval().requires_grad_(False)


def inputs(
    size: tuple[int, int], dtype: torch.dtype, *, text_tokens: int = TEXT_TOKENS
) -> dict[str, Any]:
    """The arguments of a call of rows and columns of tokens."""
    rows, columns = size
    generator = torch.Generator().manual_seed(1)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(dtype)

    places = torch.zeros(rows, columns, 3)
    places[..., 1] += torch.arange(rows)[:, None]
    places[..., 2] += torch.arange(columns)
    return {
        "hidden_states": draw(1, rows * columns, 64),
        "encoder_hidden_states": draw(1, text_tokens, 4096),
        "pooled_projections": draw(1, 768),
        "timestep": torch.tensor([0.5], dtype=dtype),
        "guidance": torch.tensor([3.5]),
        "img_ids": places.flatten(0, 1),
        "txt_ids": torch.zeros(text_tokens, 3),
    }
