"""What plugs into a loaded model through diffusers: ControlNets and IP-Adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from torch import Tensor

from hirescli.errors import RequestError
from hirescli.models.components import naming, whole
from hirescli.models.families import read_json
from hirescli.models.fits import check_controlnet
from hirescli.models.plugin_sources import (
    CONFIG,
    ENCODER,
    PluginSource,
    fitting_images,
    fitting_layout,
    said_by,
)
from hirescli.models.quiet import quiet_libraries
from hirescli.models.safetensors_check import Tensors, read_tensors
from hirescli.models.text import ClipText
from hirescli.models.transformer_text import TransformerText

if TYPE_CHECKING:
    from PIL import Image

    from hirescli.models.load import Model

_HINT = "controlnet_cond_embedding."


def load_controlnet(model: Model, source: PluginSource) -> Any:
    """A ControlNet for a model, in the dtype of its denoiser, on the CPU.

    Args:
        model: It is for.
        source: From `find_controlnet`.

    Raises:
        RequestError: If it is damaged, or made for another family.
    """
    source.check()
    with quiet_libraries():
        if model.card.family == "flux":
            fitting_layout(source.path, read_json(source.path / CONFIG), model.source)
            return whole(FluxControlNetModel, source.path, model.unet.dtype)
        if source.path.is_file():
            return _single_controlnet(model, read_tensors(source.path), model.unet.dtype)
        return _controlnet_folder(model, source, model.unet.dtype)


def _controlnet_folder(model: Model, source: PluginSource, dtype: torch.dtype) -> Any:
    config = read_json(source.path / CONFIG)
    check_controlnet(source.path, config, dict(model.unet.config), model.card)
    variant = "fp16" if source.weights[0].name.endswith(".fp16.safetensors") else None
    return whole(ControlNetModel, source.path, dtype, variant=variant)


def _single_controlnet(model: Model, tensors: Tensors, dtype: torch.dtype) -> Any:
    """From one file: its config is that of the denoiser's copy, which a ControlNet is."""
    check_controlnet(tensors.path, said_by(tensors), dict(model.unet.config), model.card)
    hint = [
        tensors.shapes[f"{_HINT}{name}.weight"][0]
        for name in ("conv_in", "blocks.1", "blocks.3", "blocks.5")
        if f"{_HINT}{name}.weight" in tensors.shapes
    ]
    with torch.device("meta"):
        copy = ControlNetModel.from_unet(
            model.unet, load_weights_from_unet=False,
            **({"conditioning_embedding_out_channels": tuple(hint)} if len(hint) == 4 else {}),
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, naming(tensors.path):
        copy.save_config(folder)
        made = ControlNetModel.from_single_file(
            str(tensors.path), config=folder, torch_dtype=dtype, local_files_only=True
        )
    empty = [name for name, tensor in made.named_parameters() if tensor.is_meta]
    if empty:
        raise RequestError(
            f"{len(empty)} tensors of {tensors.path} are missing, the first is {empty[0]}; it is "
            f"no ControlNet for model `{model.card.name}`"
        )
    return made.eval().requires_grad_(False)


@torch.no_grad()
def image_embeds(
    model: Model, source: PluginSource, pictures: Sequence[tuple[Image.Image, float]]
) -> list[Tensor]:
    """Mount an IP-Adapter on a model's denoiser, and encode the pictures that say what to draw.

    Args:
        model: Its denoiser is changed: its attention reads pictures from then on.
        source: From `find_image_adapter`.
        pictures: RGB, and how strongly each acts.

    Returns:
        For each picture (2, 1, channels), or (2, 1, tokens, channels): for no picture, then for
        it, as ``ip_adapter_image_embeds`` has them under guidance. Without guidance the pipelines
        take all they are given for pictures: give them the second half alone. Of FLUX, which has
        no such guidance, (1, 1, channels).

    Raises:
        RequestError: If it is damaged, or made for another family.
    """
    source.check()
    fitting_images(source, model.source)
    flux, images = model.card.family == "flux", [image for image, _ in pictures]
    pipeline = _pipeline(model)
    with quiet_libraries(), naming(source.path):
        pipeline.load_ip_adapter(
            str(source.path.parent), subfolder="", weight_name=[source.path.name] * len(images),
            local_files_only=True, **_encoder(source, model),
        )  # fmt: skip
        pipeline.set_ip_adapter_scale([scale for _, scale in pictures])
        encoder = pipeline.image_encoder.to(dtype=model.unet.dtype)
        # Where diffusers has put it: beside the denoiser, which may be on a GPU.
        guided = () if flux else (True,)
        embeds = pipeline.prepare_ip_adapter_image_embeds(images, None, encoder.device, 1, *guided)
    model.unet.eval().requires_grad_(False)
    return list(embeds)


def _encoder(source: PluginSource, model: Model) -> dict[str, Any]:
    """Where the image encoder is, in the words of a family's pipeline."""
    if model.card.family != "flux":
        return {"image_encoder_folder": ENCODER}
    return {
        "image_encoder_pretrained_model_name_or_path": str(source.encoder),
        "image_encoder_dtype": model.unet.dtype,
    }


def _pipeline(model: Model) -> Any:
    """That into which diffusers loads an IP-Adapter."""
    assert isinstance(model.text, (ClipText, TransformerText))
    return model.text.pipeline(**{model.card.denoiser_part: model.unet})


def unmount_image_adapter(model: Model) -> None:
    """Take out again what `image_embeds` has mounted."""
    with quiet_libraries():
        _pipeline(model).unload_ip_adapter()
