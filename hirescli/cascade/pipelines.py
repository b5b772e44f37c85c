"""The diffusers pipelines of a stage, on the modules of one model, taking banded tensors.

Diffusers has one class for each of: family, from noise or from a picture, with ControlNets or
without. What they are given here that they do not know: latents of any number of channels to
begin with, and control images whose rows are read as they are needed.
"""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from diffusers.image_processor import VaeImageProcessor

from hirescli.bands.tensor import BandedTensor
from hirescli.models.quiet import quiet_libraries

with quiet_libraries():  # they tell of what they would like to have installed
    from diffusers import (
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
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from hirescli.models.load import Model

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
    image: BandedTensor, *, do_classifier_free_guidance: bool, guess_mode: bool, **_: Any
) -> Tensor:
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


def pipeline_of(
    model: Model,
    *,
    scheduler: str,
    from_picture: bool,
    controlnets: Sequence[nn.Module] = (),
    place: torch.device,
) -> Any:
    """A pipeline on the modules of a model, with a scheduler of its own.

    Args:
        model: Its modules.
        scheduler: A name of the model's card.
        from_picture: Whether it begins from latents, or from noise.
        controlnets: Those that take part.
        place: Where it computes.
    """
    family = "sdxl" if model.card.family == "sdxl" else "sd"
    plain: Any = _PIPELINES[family, from_picture, bool(controlnets)]
    kind = _banded_kind(plain, from_picture)
    given = {
        "vae": model.autoencoder,
        "unet": model.unet,
        "scheduler": model.scheduler_named(scheduler),
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


@cache
def _banded_kind(kind: Any, from_picture: bool) -> Any:
    ours = _FromPicture if from_picture else _BandedPipeline
    return type(kind.__name__, (ours, kind), {"__module__": kind.__module__})
