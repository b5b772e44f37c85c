"""The two diffusers pipelines of a stage, on the modules of one model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from hirescli.bands.tensor import BandedTensor
    from hirescli.models.load import Model


class LatentImg2ImgPipeline(StableDiffusionImg2ImgPipeline):
    """Image-to-image that takes latents of any number of channels as `image`.

    The pipeline it extends knows latents by their four channels and would encode others.

    Attributes:
        noise_like: Gives the noise for latents.
        keep: Computes latents and keeps them.
    """

    noise_like: Callable[[BandedTensor], BandedTensor]
    keep: Callable[[BandedTensor], BandedTensor]

    def prepare_latents(
        self,
        image: BandedTensor,
        timestep: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | None = None,
    ) -> BandedTensor:
        """The latents (1, C, h, w) of `image`, noised to `timestep`."""
        noise = self.noise_like(image)
        return self.keep(self.scheduler.add_noise(image.to(dtype), noise.to(dtype), timestep))


def text_to_image(model: Model) -> StableDiffusionPipeline:
    """The pipeline of the base stage."""
    pipeline: StableDiffusionPipeline = _quiet(StableDiffusionPipeline, model)
    return pipeline


def image_to_image(model: Model) -> LatentImg2ImgPipeline:
    """The pipeline of an upscaling stage."""
    pipeline: LatentImg2ImgPipeline = _quiet(LatentImg2ImgPipeline, model)
    pipeline.image_processor = VaeImageProcessor(
        vae_scale_factor=pipeline.vae_scale_factor,
        vae_latent_channels=model.card.latent_channels,
    )
    return pipeline


def _quiet(kind: type[Any], model: Model) -> Any:
    with warnings.catch_warnings():
        # Of a sample size below 64.
        warnings.simplefilter("ignore")
        pipeline = kind(
            vae=model.autoencoder,
            # Texts are encoded before; a text encoder would impose its dtype on the latents.
            text_encoder=None,
            tokenizer=None,
            unet=model.unet,
            scheduler=model.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
