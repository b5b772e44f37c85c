"""The diffusers pipelines of a stage, on the modules of one model, taking banded tensors.

Diffusers has one class for each of: family, from noise or from a picture, with ControlNets or
without. What they are given here that they do not know: latents of any number of channels to
begin with, and control images whose rows are read as they are needed.
"""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.image_processor import VaeImageProcessor

from hirescli.bands.tensor import BandedTensor
from hirescli.models.quiet import quiet_libraries

with quiet_libraries():  # they tell of what they would like to have installed
    from diffusers import (
        FluxControlNetImg2ImgPipeline,
        FluxControlNetPipeline,
        FluxImg2ImgPipeline,
        FluxPipeline,
        StableDiffusion3Img2ImgPipeline,
        StableDiffusion3Pipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionImg2ImgPipeline,
        StableDiffusionPipeline,
        StableDiffusionXLControlNetImg2ImgPipeline,
        StableDiffusionXLControlNetPipeline,
        StableDiffusionXLImg2ImgPipeline,
        StableDiffusionXLPipeline,
    )

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from hirescli.models.load import Model
    from hirescli.planning.cascade import Stage

# By family, whether it begins from a picture, and whether ControlNets take part.
_PIPELINES: dict[tuple[str, bool, bool], type[Any]] = {
    ("sd", False, False): StableDiffusionPipeline,
    ("sd", True, False): StableDiffusionImg2ImgPipeline,
    ("sd", False, True): StableDiffusionControlNetPipeline,
    ("sd", True, True): StableDiffusionControlNetImg2ImgPipeline,
    ("sdxl", False, False): StableDiffusionXLPipeline,
    ("sdxl", True, False): StableDiffusionXLImg2ImgPipeline,
    ("sdxl", False, True): StableDiffusionXLControlNetPipeline,
    ("sdxl", True, True): StableDiffusionXLControlNetImg2ImgPipeline,
    ("flux", False, False): FluxPipeline,
    ("flux", True, False): FluxImg2ImgPipeline,
    ("flux", False, True): FluxControlNetPipeline,
    ("flux", True, True): FluxControlNetImg2ImgPipeline,
    ("sd3", False, False): StableDiffusion3Pipeline,
    ("sd3", True, False): StableDiffusion3Img2ImgPipeline,
}


class _BandedPipeline:
    """What a pipeline of diffusers does otherwise with banded tensors.

    Attributes:
        place: Where it computes; weights may rest elsewhere.
        noise: Of the shape of the latents that it begins from.
        keep: Computes latents and keeps them.
    """

    place: torch.device
    noise: BandedTensor
    keep: Callable[[BandedTensor], BandedTensor]

    @property
    def _execution_device(self) -> torch.device:
        return self.place

    # Diffusers has two names for one thing: from noise, and from a picture.

    def prepare_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        """A control image for every part of guidance; a banded one is ready to be read."""
        if isinstance(image, BandedTensor):
            return _guided(image, **kwargs)
        return super().prepare_image(image, *args, **kwargs)  # type: ignore[misc]

    def prepare_control_image(self, image: Any, *args: Any, **kwargs: Any) -> Any:
        """As `prepare_image`."""
        if isinstance(image, BandedTensor):
            return _guided(image, **kwargs)
        return super().prepare_control_image(image, *args, **kwargs)  # type: ignore[misc]


def _guided(
    image: BandedTensor, *, do_classifier_free_guidance: bool = False, guess_mode: bool = False,
    **_: Any,
) -> Tensor:  # fmt: skip
    """Once, or for both parts of guidance."""
    return torch.cat([image] * 2) if do_classifier_free_guidance and not guess_mode else image


class _FromPicture(_BandedPipeline):
    def prepare_latents(
        self,
        image: BandedTensor,
        timestep: Tensor,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: torch.dtype,
        device: torch.device,
        *_: Any,
        **__: Any,
    ) -> BandedTensor:
        """The latents (1, C, h, w) of `image`, noised to `timestep`."""
        scheduler: Any = self.scheduler  # type: ignore[attr-defined]
        return self.keep(scheduler.add_noise(image.to(dtype), self.noise.to(dtype), timestep))


class _FlowsFromPicture(_BandedPipeline):
    def prepare_latents(
        self, image: BandedTensor, timestep: Tensor, batch_size: int, num_images_per_prompt: int,
        dtype: torch.dtype, device: torch.device, *_: Any, **__: Any,
    ) -> BandedTensor:  # fmt: skip
        """The latents (1, C, h, w) of `image`, on their way to noise as far as `timestep`."""
        return self.keep(_flowed(self, image, timestep, dtype))


class _Packed(_BandedPipeline):
    """Of FLUX, whose latents (1, C, h, w) go as tokens (1, h w / 4, 4 C) of 2x2 of them."""

    @staticmethod
    def _prepare_latent_image_ids(
        batch_size: int, height: int, width: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Places of the tokens, in float32: bfloat16 has not every whole number above 256."""
        made: Tensor = FluxPipeline._prepare_latent_image_ids(
            batch_size, height, width, device, torch.float32
        )
        return made

    def _pack_latents(
        self, latents: Any, batch_size: int, channels: int, rows: int, columns: int
    ) -> Any:
        """Tokens of latents; those of a picture are kept, since every step may read them."""
        made = FluxPipeline._pack_latents(latents, batch_size, channels, rows, columns)
        return self.keep(made) if isinstance(made, BandedTensor) else made

    def unpacked(self, latents: BandedTensor, stage: Stage) -> BandedTensor:
        """Latents (1, C, h, w) of the tokens of a stage."""
        made: BandedTensor = FluxPipeline._unpack_latents(
            latents,
            stage.height_px,
            stage.width_px,
            self.vae_scale_factor,  # type: ignore[attr-defined]
        )
        return made


class _PackedFromPicture(_Packed):
    def prepare_latents(
        self, image: BandedTensor, timestep: Tensor, batch_size: int, channels: int, height: int,
        width: int, dtype: torch.dtype, device: torch.device, *_: Any, **__: Any,
    ) -> tuple[BandedTensor, Tensor]:  # fmt: skip
        """The same as tokens, and their places."""
        rows, columns = image.shape[2:]
        made = _flowed(self, image, timestep, dtype)
        packed = self._pack_latents(made, batch_size, channels, rows, columns)
        places = self._prepare_latent_image_ids(batch_size, rows // 2, columns // 2, device, dtype)
        return packed, places


def _flowed(pipeline: Any, image: BandedTensor, timestep: Tensor, dtype: torch.dtype) -> Any:
    """Latents on their way to noise."""
    noise = pipeline.noise.to(dtype)
    return pipeline.scheduler.scale_noise(image.to(dtype), timestep, noise)


class ControlEncoder:
    """Stands in for the autoencoder of FLUX's pipelines, which read control images as latents.

    They would encode each whole, and draw its latents at random out of what the encoder gives.

    Args:
        autoencoder: Whose latents they are.
        latents: Of the control images in their order, as the denoiser has them: each is made
            when the pipeline asks for it.
    """

    def __init__(self, autoencoder: Any, latents: Iterator[Tensor]) -> None:
        # The pipelines shift and scale, which is done.
        facts = {**autoencoder.config, "shift_factor": 0.0, "scaling_factor": 1.0}
        self.config = SimpleNamespace(**facts)
        self.dtype = autoencoder.dtype
        self._latents = latents

    def encode(self, _: BandedTensor) -> SimpleNamespace:
        """Latents (1, C, h, w) of the next control image."""
        return SimpleNamespace(latents=next(self._latents))


def pipeline_of(
    model: Model,
    *,
    scheduler: str,
    from_picture: bool,
    controlnets: Sequence[nn.Module] = (),
    control_latents: Iterator[Tensor] | None = None,
    place: torch.device,
    dynamic_shifting: bool = True,
) -> Any:
    """A pipeline on the modules of a model, with a scheduler of its own.

    Args:
        model: Its modules.
        scheduler: A name of the model's card.
        from_picture: Whether it begins from latents, or from noise.
        controlnets: Those that take part.
        control_latents: Of their images, where these are read as latents.
        place: Where it computes.
        dynamic_shifting: Whether a schedule that shifts with the size may do so.
    """
    family = "sd" if model.card.family == "builtin" else model.card.family
    plain: Any = _PIPELINES[family, from_picture, bool(controlnets)]
    kind = _banded_kind(plain, family, from_picture)
    autoencoder = model.autoencoder
    given = {
        "vae": ControlEncoder(autoencoder, control_latents) if control_latents else autoencoder,
        model.card.denoiser_part: model.unet,
        "scheduler": model.scheduler_named(scheduler, dynamic_shifting=dynamic_shifting),
        "controlnet": controlnets[0] if len(controlnets) == 1 else list(controlnets),
        # Texts are encoded before; a text encoder would impose its dtype on the latents.
        "requires_safety_checker": False,
        "add_watermarker": False,
    }
    parameters = list(inspect.signature(kind).parameters.values())
    arguments = {p.name: given.get(p.name) for p in parameters if p.default is p.empty}
    arguments |= {p.name: given[p.name] for p in parameters if p.name in given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a sample size below 64
        made = kind(**arguments)
    made.set_progress_bar_config(disable=True)
    made.image_processor = VaeImageProcessor(
        vae_scale_factor=made.vae_scale_factor, vae_latent_channels=model.card.latent_channels
    )
    made.place = place
    return made


_OURS: dict[str, tuple[type[Any], type[Any]]] = {  # from noise, from a picture
    "sd": (_BandedPipeline, _FromPicture),
    "flux": (_Packed, _PackedFromPicture),
    "sd3": (_BandedPipeline, _FlowsFromPicture),
}


@cache
def _banded_kind(kind: Any, family: str, from_picture: bool) -> Any:
    ours = _OURS.get(family, _OURS["sd"])[from_picture]
    return type(kind.__name__, (ours, kind), {"__module__": kind.__module__})
