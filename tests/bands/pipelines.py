"""Pipelines of the tiny components, with the text encoded before, and one call of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import models
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
    FluxPipeline,
    PNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from models import draw
from torch import Tensor

WIDTH, HEIGHT = 72, 104  # latents of 9 x 13
PARTS = ("unet", "transformer", "controlnet", "vae")


@dataclass(frozen=True)
class Case:
    """One pipeline and what it is called with.

    Attributes:
        kind: The pipeline's class.
        parts: Makes its components.
        arguments: Makes the arguments of a call, beside steps, seed and kind of output.
    """

    kind: type[Any]
    parts: Callable[[], dict[str, Any]]
    arguments: Callable[[], dict[str, Any]]

    def pipeline(self, scheduler: type[Any] = DDIMScheduler) -> Any:
        """The pipeline, fresh; its components are the tiny ones."""
        absent = {"text_encoder": None, "tokenizer": None}
        if self.kind.__name__.startswith(("Flux", "StableDiffusion3")):
            scheduler = FlowMatchEulerDiscreteScheduler
            absent |= {"text_encoder_2": None, "tokenizer_2": None}
            if self.kind.__name__.startswith("StableDiffusion3"):
                absent |= {"text_encoder_3": None, "tokenizer_3": None}
        elif issubclass(self.kind, StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline):
            absent |= {"text_encoder_2": None, "tokenizer_2": None}
        else:
            absent |= {"safety_checker": None, "feature_extractor": None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a sample size below 64
            pipeline = self.kind(**self.parts(), **absent, scheduler=_scheduler(scheduler))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def run(self, pipeline: Any, *, output_type: str = "latent", **changes: Any) -> Tensor:
        """One call with the seed of all calls."""
        generator = torch.Generator().manual_seed(8)
        arguments = {"num_inference_steps": 3, "guidance_scale": 4.0} | self.arguments() | changes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = pipeline(**arguments, generator=generator, output_type=output_type)
        images: Tensor = made.images
        return images


def _scheduler(kind: type[Any]) -> Any:
    """As the models' own configs have it; clipped samples would hide what went wrong."""
    common = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    own = {DDIMScheduler: {"clip_sample": False}, PNDMScheduler: {"skip_prk_steps": True}}
    if kind is FlowMatchEulerDiscreteScheduler:
        return kind(shift=3.0)
    return kind(num_train_timesteps=1000, steps_offset=1, **common, **own.get(kind, {}))


def _sd() -> dict[str, Any]:
    return {"unet": models.sd15_unet(), "vae": models.autoencoder()}


def _sdxl() -> dict[str, Any]:
    return {"unet": models.sdxl_unet(), "vae": models.autoencoder()}


def _ip_adapter() -> dict[str, Any]:
    return {"unet": models.ip_adapter_unet(), "vae": models.autoencoder(), "image_encoder": None}


def _controlled(*seeds: int) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        nets = [models.controlnet(seed) for seed in seeds]
        return {**_sd(), "controlnet": nets if len(nets) > 1 else nets[0]}

    return make


def _flux() -> dict[str, Any]:
    return {"transformer": models.flux_transformer(), "vae": models.patched_autoencoder(2)}


def _controlled_flux() -> dict[str, Any]:
    return {**_flux(), "controlnet": models.flux_controlnet()}


def _flux_text() -> dict[str, Any]:
    text, pooled = _text(), _pooled()
    return {key: given[key] for given in (text, pooled) for key in given if key[0] == "p"}


def _sd3() -> dict[str, Any]:
    return {"transformer": models.sd35_transformer(), "vae": models.patched_autoencoder(4)}


def _text(batch: int = 1) -> dict[str, Any]:
    shape = (batch, models.TEXT_TOKENS, models.TEXT_CHANNELS)
    return {"prompt_embeds": draw(shape, 1), "negative_prompt_embeds": draw(shape, 2)}


def _even_sizes() -> dict[str, Any]:
    return {"height": 112, "width": 80}


def _even_picture() -> Tensor:
    return (models.picture(1, 3, (112, 80), 3) / 4 + 0.5).clamp(0, 1)


def _sizes() -> dict[str, Any]:
    return {"height": HEIGHT, "width": WIDTH}


def _picture(seed: int = 3, channels: int = 3) -> Tensor:
    return (models.picture(1, channels, (HEIGHT, WIDTH), seed) / 4 + 0.5).clamp(0, 1)


def _pooled() -> dict[str, Any]:
    shape = (1, models.POOLED_CHANNELS)
    return {
        "pooled_prompt_embeds": draw(shape, 4),
        "negative_pooled_prompt_embeds": draw(shape, 5),
    }


def _faces() -> dict[str, Any]:
    return {"ip_adapter_image_embeds": [draw((2, 1, models.IMAGE_CHANNELS), 6)]}


def _controls(count: int = 1) -> dict[str, Any]:
    pictures = [_picture(seed) for seed in range(count)]
    scales = [0.8, 0.5][:count]
    if count == 1:
        return {"image": pictures[0], "controlnet_conditioning_scale": scales[0]}
    return {"image": pictures, "controlnet_conditioning_scale": scales}


TEXT_TO_IMAGE = Case(StableDiffusionPipeline, _sd, lambda: _text() | _sizes())
CASES = {
    "sd": TEXT_TO_IMAGE,
    "sd, two prompts": Case(StableDiffusionPipeline, _sd, lambda: _text(2) | _sizes()),
    "sd, no guidance": Case(
        StableDiffusionPipeline, _sd, lambda: _text() | _sizes() | {"guidance_scale": 1.0}
    ),
    "sd image to image": Case(
        StableDiffusionImg2ImgPipeline,
        _sd,
        lambda: _text() | {"image": _picture(), "strength": 0.7},
    ),
    "sdxl": Case(StableDiffusionXLPipeline, _sdxl, lambda: _text() | _pooled() | _sizes()),
    "sdxl image to image": Case(
        StableDiffusionXLImg2ImgPipeline,
        _sdxl,
        lambda: _text() | _pooled() | {"image": _picture(), "strength": 0.7},
    ),
    "ip-adapter": Case(
        StableDiffusionPipeline, _ip_adapter, lambda: _text() | _sizes() | _faces()
    ),
    "controlnet": Case(
        StableDiffusionControlNetPipeline, _controlled(2), lambda: _text() | _controls()
    ),
    "controlnet, guessing": Case(
        StableDiffusionControlNetPipeline,
        _controlled(2),
        lambda: _text() | _controls() | {"guess_mode": True},
    ),
    "controlnet, ends early": Case(
        StableDiffusionControlNetPipeline,
        _controlled(2),
        lambda: _text() | _controls() | {"control_guidance_end": 0.5},
    ),
    "flux": Case(FluxPipeline, _flux, lambda: _flux_text() | _even_sizes()),
    "flux, true guidance": Case(
        FluxPipeline, _flux, lambda: _text() | _pooled() | _even_sizes() | {"true_cfg_scale": 3.0}
    ),
    "flux image to image": Case(
        FluxImg2ImgPipeline,
        _flux,
        lambda: _flux_text() | _even_sizes() | {"image": _even_picture(), "strength": 0.7},
    ),
    "flux controlnet": Case(
        FluxControlNetPipeline,
        _controlled_flux,
        lambda: _flux_text() | _even_sizes() | {"control_image": _even_picture()},
    ),
    "sd3": Case(StableDiffusion3Pipeline, _sd3, lambda: _text() | _pooled() | _even_sizes()),
    "sd3 image to image": Case(
        StableDiffusion3Img2ImgPipeline,
        _sd3,
        lambda: _text() | _pooled() | _even_sizes() | {"image": _even_picture(), "strength": 0.7},
    ),
    "two controlnets": Case(
        StableDiffusionControlNetPipeline, _controlled(2, 3), lambda: _text() | _controls(2)
    ),
}
