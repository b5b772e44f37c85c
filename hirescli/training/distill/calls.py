"""A call of the denoiser of each family, as training makes it: noisy latents in, prediction out.

Shapes: (B, C, h, w) latents, (B, tokens, channels) text states, (B, channels) pooled ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hirescli.models.quiet import quiet_libraries

with quiet_libraries():  # they tell of what they would like to have installed
    from diffusers import FluxPipeline

_FLUX_TIMESTEPS = 1000  # its transformer multiplies by them what it is told


class DenoiserCall(Protocol):
    """One family's denoiser; whatever attentions are in place take part."""

    @property
    def denoiser(self) -> nn.Module:
        """The module that is called."""

    def __call__(self, x_t: Tensor, told: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        """The prediction (B, C, h, w), float32.

        Args:
            x_t: Noisy latents, float32.
            told: What the schedule says of the timesteps, (B,).
            text: Text states.
            pooled: Pooled ones; None: of a family without.
        """


@dataclass(frozen=True)
class UNetCall:
    """Of Stable Diffusion 1.5, 2.1, XL and the built-in model.

    Attributes:
        denoiser: The UNet.
        dtype: What it is in and computes in; what learns is float32 always.
        time_ids: What SDXL is told about sizes, (6,); None: of other families.
    """

    denoiser: nn.Module
    dtype: torch.dtype = torch.float32
    time_ids: Tensor | None = None

    def __call__(self, x_t: Tensor, told: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        """As of `DenoiserCall`."""
        more: dict[str, Any] = {}
        if pooled is not None:
            assert self.time_ids is not None, "a model that reads pooled text reads sizes, too"
            ids = self.time_ids.to(x_t.device).expand(len(x_t), -1)
            more["added_cond_kwargs"] = {"text_embeds": pooled.to(self.dtype), "time_ids": ids}
        lower = self.dtype == torch.bfloat16
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=lower):
            prediction: Tensor = self.denoiser(
                x_t.to(self.dtype), told, text.to(self.dtype), return_dict=False, **more
            )[0]
        return prediction.float()


@dataclass(frozen=True)
class FluxCall:
    """Of FLUX, whose latents go as tokens of 2x2 of them.

    Attributes:
        denoiser: The transformer.
        guidance_scale: What it is told, if it is one that reads it.
    """

    denoiser: Any
    guidance_scale: float

    def __call__(self, x_t: Tensor, told: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        """As of `DenoiserCall`."""
        dtype, device = self.denoiser.dtype, x_t.device
        batch, _, height, width = x_t.shape
        guidance = None
        if self.denoiser.config.guidance_embeds:
            guidance = torch.full((batch,), self.guidance_scale, device=device)
        assert pooled is not None, "FLUX reads pooled text"
        made = self.denoiser(
            hidden_states=packed(x_t).to(dtype),
            timestep=told / _FLUX_TIMESTEPS,
            guidance=guidance,
            pooled_projections=pooled.to(dtype),
            encoder_hidden_states=text.to(dtype),
            txt_ids=torch.zeros(text.shape[1], 3, device=device),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                batch, height // 2, width // 2, device, torch.float32
            ),
            return_dict=False,
        )[0]
        return unpacked(made, height, width).float()


@dataclass(frozen=True)
class SD3Call:
    """Of Stable Diffusion 3.

    Attributes:
        denoiser: The transformer.
    """

    denoiser: Any

    def __call__(self, x_t: Tensor, told: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        """As of `DenoiserCall`."""
        dtype = self.denoiser.dtype
        assert pooled is not None, "Stable Diffusion 3 reads pooled text"
        made: Tensor = self.denoiser(
            hidden_states=x_t.to(dtype),
            timestep=told,
            encoder_hidden_states=text.to(dtype),
            pooled_projections=pooled.to(dtype),
            return_dict=False,
        )[0]
        return made.float()


def packed(latents: Tensor) -> Tensor:
    """FLUX's tokens (B, h w / 4, 4 C) of latents."""
    made: Tensor = FluxPipeline._pack_latents(latents, *latents.shape)
    return made


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents (B, C, h, w) of FLUX's tokens."""
    made: Tensor = FluxPipeline._unpack_latents(tokens, height, width, vae_scale_factor=1)
    return made
