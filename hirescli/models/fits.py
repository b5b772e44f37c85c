"""Whether what plugs into a model was made for its family, by names and shapes. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hirescli.errors import RequestError
from hirescli.models.safetensors_check import Tensors
from hirescli.planning.card import Card

_FAMILIES = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.1", 2048: "SDXL"}
# Ends of the two factors of a LoRA, as diffusers, PEFT and kohya name them.
_DOWN = (".lora_A.weight", ".lora.down.weight", ".lora_down.weight")
_UP = (".lora_B.weight", ".lora.up.weight", ".lora_up.weight")
_PREFIXES = ("unet.", "lora_unet_")
# Of models with transformers in place of a UNet.
_OTHERS = ("transformer.", "lora_transformer", "double_blocks", "joint_blocks", "lora_te3_")


def check_lora(tensors: Tensors, layers: Mapping[str, tuple[int, ...]], card: Card) -> None:
    """Refuse a LoRA that was not made for a model.

    Args:
        tensors: Of its file.
        layers: Shapes of the denoiser's weights, by module.
        card: Of the model.

    Raises:
        RequestError: If it is no LoRA, or of another family; names the first wrong tensor.
    """
    path = tensors.path
    downs = {n: s for n, s in tensors.shapes.items() if n.endswith(_DOWN)}
    ups = {n: s for n, s in tensors.shapes.items() if n.endswith(_UP)}
    if not downs or not ups:
        raise RequestError(f"{path} is no LoRA: it has no pairs of lora_A and lora_B, or the like")
    for name in tensors.shapes:
        if any(mark in name for mark in _OTHERS):
            raise RequestError(_other(path, "LoRA", "FLUX or SD3", card, name))
        if name.startswith(("lora_te2_", "text_encoder_2.")) and card.family != "sdxl":
            raise RequestError(_other(path, "LoRA", "SDXL", card, name))
    flat = {name.replace(".", "_"): shape for name, shape in layers.items()}
    for side, factors in ((1, downs), (0, ups)):
        for name, shape in factors.items():
            wanted = flat.get(_module(name))
            if name.endswith(_cross_ends()) and side == 1 and shape[1] != card.text_channels:
                raise RequestError(_other(path, "LoRA", _family(shape[1]), card, name))
            if wanted is not None and shape[side] != wanted[side]:
                raise RequestError(
                    f"{path} is a LoRA for another model than `{card.name}`: {name} is of shape "
                    f"{shape}, the layer of {wanted}"
                )
    unet = [name for name in downs if name.startswith(_PREFIXES)]
    known = [name for name in unet if _module(name) in flat or "_blocks_" in name]
    if unet and not known:
        raise RequestError(
            f"{path} is a LoRA for another model than `{card.name}`: it has no layer {unet[0]}"
        )


def _cross_ends() -> tuple[str, ...]:
    return tuple(f"attn2{dot}to_{which}{end}" for dot in "._" for which in "kv" for end in _DOWN)


def _module(name: str) -> str:
    """The module of the denoiser that a factor changes, with _ for each dot."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for end in (*_DOWN, *_UP):
        name = name.removesuffix(end)
    return name.replace(".", "_")


def check_controlnet(
    where: Path, config: Mapping[str, Any], unet: Mapping[str, Any], card: Card
) -> None:
    """Refuse a ControlNet that was not made for a model.

    Args:
        where: Its file or folder.
        config: Its config.
        unet: The denoiser's config.
        card: Of the model.

    Raises:
        RequestError: If it is of another kind or family.
    """
    if config.get("_class_name") != "ControlNetModel":
        raise RequestError(
            f"{where} is a {config.get('_class_name')}, which this version does not run; it runs "
            "ControlNetModel"
        )
    channels = config.get("cross_attention_dim", 1280)
    key = "addition_embed_type"
    if channels != unet["cross_attention_dim"] or config.get(key) != unet.get(key):
        said = f"cross_attention_dim {channels}"
        raise RequestError(_other(where, "ControlNet", _family(channels), card, said))


def check_image_adapter(tensors: Tensors, unet: Mapping[str, Any], card: Card) -> None:
    """Refuse an IP-Adapter that was not made for a model.

    Raises:
        RequestError: If it is none, or of another family.
    """
    found = _first(n for n in tensors.shapes if n.startswith("ip_adapter.") and "to_k_ip" in n)
    if found is None or not any(name.startswith("image_proj.") for name in tensors.shapes):
        raise RequestError(f"{tensors.path} is no IP-Adapter: it has no ip_adapter and image_proj")
    channels = tensors.shapes[found][-1]
    if channels != unet["cross_attention_dim"]:
        raise RequestError(_other(tensors.path, "picture adapter", _family(channels), card, found))


def _first(names: Iterable[str]) -> str | None:
    return next(iter(names), None)


def _family(channels: int) -> str:
    return _FAMILIES.get(channels, f"a model with text states of {channels} channels")


def _other(where: Path, what: str, family: str, card: Card, sign: str) -> str:
    return (
        f"{where} is a {what} for {family} ({sign}); model `{card.name}` is "
        f"{_family(card.text_channels)}: use one made for that"
    )
