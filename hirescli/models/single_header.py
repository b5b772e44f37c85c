"""What a single .safetensors file is, from the names and shapes of its tensors. No torch."""

from __future__ import annotations

import math

from hirescli.errors import RequestError
from hirescli.models.safetensors_check import Tensors

_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_TEXT_CHANNELS = {768: "sd15", 1024: "sd21", 2048: "sdxl"}
# What is no whole model: a mark in its names, what it is, what to do with it.
_OTHERS = (
    ("lora", "a LoRA", "give it with --lora"),
    ("hada_w1", "a LoHa", "convert it to a LoRA and give it with --lora"),
    ("control_model.", "a ControlNet", "give it with --control"),
    ("controlnet_cond_embedding.", "a ControlNet", "give it with --control"),
    ("ip_adapter.", "an IP-Adapter", "name its base model with --model"),
    (".to_q_.", "a LinFusion adapter", "give it with --adapter"),
    ("double_blocks.", "a FLUX model", "name its folder, or its repository on the hub"),
    ("joint_blocks.", "a Stable Diffusion 3 model", "name its folder, or its repository"),
    ("down_blocks.", "one component of a model", "name the folder that holds all components"),
    ("encoder.down.", "an autoencoder alone", "name a file or folder that holds the whole model"),
)
# Where each component's tensors are.
_PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}


def base_card_of_file(tensors: Tensors) -> str:
    """The name of the shipped card of a single file's family.

    Raises:
        RequestError: If it is no whole model, or of another family; says what it is.
    """
    path, shapes = tensors.path, tensors.shapes
    if _INPUT not in shapes:
        for mark, what, remedy in _OTHERS:
            if any(mark in name for name in shapes):
                raise RequestError(f"{path} is {what}, not a model; {remedy}")
        raise RequestError(
            f"{path} is no model that is known: it has no tensor {_INPUT}; this version runs "
            "Stable Diffusion 1.5, 2.1 and XL"
        )
    channels = shapes[_INPUT][1] if len(shapes[_INPUT]) == 4 else 0
    if channels != 4:
        raise RequestError(
            f"{path}: its denoiser takes {channels} channels ({_INPUT}), as models for "
            "inpainting do; this version runs those of 4"
        )
    name = _family(tensors)
    for part in ("vae", "text_encoder", *(("text_encoder_2",) if name == "sdxl" else ())):
        if not any(key.startswith(_PREFIXES[part]) for key in shapes):
            raise RequestError(
                f"{path} is not complete: it has no {part} (tensors {_PREFIXES[part][-1]}...); "
                "use a file of the whole model"
            )
    return name


def _family(tensors: Tensors) -> str:
    for name, shape in tensors.shapes.items():
        if name.startswith("model.diffusion_model.") and name.endswith("attn2.to_k.weight"):
            known = _TEXT_CHANNELS.get(shape[-1])
            if known is not None:
                return known
            what = "the refiner of SDXL" if shape[-1] == 1280 else "of no family that is known"
            raise RequestError(
                f"{tensors.path} is {what}: its cross-attention reads {shape[-1]} channels "
                f"({name}); this version runs models with 768 (SD 1.5), 1024 (SD 2.1) and 2048 "
                "(SDXL)"
            )
    raise RequestError(f"{tensors.path} has a denoiser without cross-attention to text")


def parameters_of_file(tensors: Tensors) -> tuple[tuple[str, int], ...]:
    """Numbers in the weights of every component."""
    found = {
        part: sum(
            math.prod(shape) for key, shape in tensors.shapes.items() if key.startswith(prefixes)
        )
        for part, prefixes in _PREFIXES.items()
    }
    return tuple((part, count) for part, count in found.items() if count)


def scheduler_changes(tensors: Tensors) -> dict[str, object]:
    """What the file says of its noise schedule that differs from its family's."""
    said = tensors.metadata.get("modelspec.prediction_type", "")
    changes: dict[str, object] = {}
    if "v_pred" in tensors.shapes or said == "v":
        changes["prediction_type"] = "v_prediction"
    elif said == "epsilon":
        changes["prediction_type"] = "epsilon"
    if "ztsnr" in tensors.shapes:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return changes
