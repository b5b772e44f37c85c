"""Whether what plugs into a model was made for its family, by names and shapes. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hirescli.errors import RequestError
from hirescli.models import transformer_fits
from hirescli.models.flux_controls import CLASS as FLUX_CLASS
from hirescli.models.flux_images import is_for_flux
from hirescli.models.safetensors_check import Tensors
from hirescli.planning.card import Card

_FAMILIES = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2.1", 2048: "SDXL"}
# Ends of the two factors of a LoRA, as diffusers (now and once), PEFT and kohya name them; the
# longer of two that fit first.
_DOWN = (
    ".lora_linear_layer.down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight",
    ".lora_down.weight",
)  # fmt: skip
_UP = (
    ".lora_linear_layer.up.weight", ".lora_B.weight", ".lora.up.weight", "_lora.up.weight",
    ".lora_up.weight",
)  # fmt: skip
_UNET = ("unet.", "lora_unet_")
_SECOND_TEXT = ("lora_te2_", "text_encoder_2.")
_PREFIXES = (*_UNET, *_SECOND_TEXT, "lora_te_", "lora_te1_", "text_encoder.")
# Of models with transformers in place of a UNet.
_OTHERS = ("transformer.", "lora_transformer", "double_blocks", "joint_blocks", "lora_te3_")


def factor_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names of the two factors of every change in a LoRA, the reducing one first.

    Raises:
        KeyError: If one stands alone.
    """
    given = set(names)
    pairs = []
    for name in sorted(given):
        down = _end(name, _DOWN)
        if down is not None:
            other = name.removesuffix(down) + _UP[_DOWN.index(down)]
            if other not in given:
                raise KeyError(name)
            pairs.append((name, other))
    return pairs


def check_lora(tensors: Tensors, layers: Mapping[str, tuple[int, ...]], card: Card) -> None:
    """Refuse a LoRA that was not made for a model.

    Args:
        tensors: Of its file.
        layers: Shapes of the denoiser's weights, by module.
        card: Of the model.

    Raises:
        RequestError: If it is no LoRA, of another family, or named in a way that is not read;
            names the first wrong tensor.
    """
    path, shapes, pairs = tensors.path, tensors.shapes, _pairs(tensors)
    if card.is_transformer:
        transformer_fits.check_names(tensors, pairs, card)
        transformer_fits.check_shapes(tensors, pairs, layers, card)
        return
    for name in shapes:
        if any(mark in name for mark in _OTHERS):
            raise RequestError(_other(path, "LoRA", "FLUX or SD3", card, name))
        if name.startswith(_SECOND_TEXT) and card.family != "sdxl":
            raise RequestError(_other(path, "LoRA", "SDXL", card, name))
    _check_names(tensors)
    flat = {name.replace(".", "_"): shape for name, shape in layers.items()}
    for down, up in pairs:
        if down.startswith(_UNET):
            _check_pair(path, {down: shapes[down], up: shapes[up]}, flat, card)
    unet = [down for down, _ in pairs if down.startswith(_UNET)]
    known = [name for name in unet if _module(name) in flat or "_blocks_" in name]
    # What kohya's scripts call the layers of SDXL is known only when they were loaded.
    unknown = unet if not known else [name for name in unet if name.startswith("unet.")]
    lost = _first(name for name in unknown if _module(name) not in flat)
    if lost is not None:
        raise RequestError(
            f"{path} is a LoRA for another model than `{card.name}`: it has no layer {lost}"
        )


def _pairs(tensors: Tensors) -> list[tuple[str, str]]:
    path = tensors.path
    try:
        pairs = factor_pairs(tensors.shapes)
    except KeyError as error:
        raise RequestError(f"{path} is damaged: {error.args[0]} has no second factor") from error
    if not pairs:
        raise RequestError(f"{path} is no LoRA: it has no pairs of lora_A and lora_B, or the like")
    return pairs


def _check_names(tensors: Tensors) -> None:
    """Refuse what would be left out when the file is loaded."""
    path = tensors.path
    for name in tensors.shapes:
        if name.startswith("base_model."):
            raise RequestError(
                f"{path} is in the layout of PEFT's save_pretrained ({name}), which keeps its "
                "strength in another file; save it with diffusers' save_lora_weights"
            )
        if not name.startswith(_PREFIXES):
            raise RequestError(
                f"{path}: {name} does not say which component it changes; save it with diffusers' "
                "save_lora_weights, whose names begin with unet or text_encoder"
            )
        # Only beside kohya's names is an alpha read.
        ends = (*_DOWN, *_UP, ".alpha") if name.startswith("lora_") else (*_DOWN, *_UP)
        if not name.endswith(ends):
            raise RequestError(
                f"{path}: {name} is no part of a plain LoRA (two factors and an alpha), and "
                "other kinds are not run"
            )


def _check_pair(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    flat: Mapping[str, tuple[int, ...]],
    card: Card,
) -> None:
    """Check the factors of one layer: the first has its columns, the second its rows."""
    for side, (name, shape) in zip((1, 0), shapes.items(), strict=True):
        module = _module(name)
        wanted, crossing = flat.get(module), module.endswith(("attn2_to_k", "attn2_to_v"))
        if len(shape) < 2:
            raise RequestError(f"{path} is damaged: {name} is of shape {shape}")
        if crossing and side == 1 and shape[1] != card.text_channels:
            raise RequestError(_other(path, "LoRA", _family(shape[1]), card, name))
        if wanted is not None and shape[side] != wanted[side]:
            raise RequestError(
                f"{path} is a LoRA for another model than `{card.name}`: {name} is of shape "
                f"{shape}, the layer of {wanted}"
            )


def _module(name: str) -> str:
    """The module of the denoiser that a factor changes, with _ for each dot."""
    for prefix in _UNET:
        name = name.removeprefix(prefix)
    name = name.removesuffix(_end(name, (*_DOWN, *_UP)) or "").replace(".processor.", ".")
    return f"{name}.0".replace(".", "_") if name.endswith(".to_out") else name.replace(".", "_")


def _end(name: str, ends: Iterable[str]) -> str | None:
    return _first(end for end in ends if name.endswith(end))


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
    if config.get("_class_name") == FLUX_CLASS:
        raise RequestError(_other(where, "ControlNet", "FLUX", card, FLUX_CLASS))
    if config.get("_class_name") != "ControlNetModel":
        raise RequestError(
            f"{where} is a {config.get('_class_name')}, which this version does not run; it runs "
            "ControlNetModel"
        )
    if config.get("global_pool_conditions"):
        raise RequestError(
            f"{where} is a ControlNet whose outputs are averaged over the whole picture "
            "(global_pool_conditions in its config.json), as those called Shuffle: this version "
            "does not run them"
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
    if is_for_flux(tensors):
        raise RequestError(_other(tensors.path, "picture adapter", "FLUX", card, "to_k_ip.bias"))
    found = _first(n for n in tensors.shapes if n.startswith("ip_adapter.") and "to_k_ip" in n)
    if found is None or not any(name.startswith("image_proj.") for name in tensors.shapes):
        raise RequestError(f"{tensors.path} is no IP-Adapter: it has no ip_adapter and image_proj")
    channels = tensors.shapes[found][-1]
    if channels != unet["cross_attention_dim"]:
        raise RequestError(_other(tensors.path, "picture adapter", _family(channels), card, found))


def _first(names: Iterable[str]) -> str | None:
    return next(iter(names), None)


def _family(channels: object) -> str:
    known = _FAMILIES.get(channels) if isinstance(channels, int) else None
    return known or f"a model with text states of {channels} channels"


def _other(where: Path, what: str, family: str, card: Card, sign: str) -> str:
    return (
        f"{where} is a {what} for {family} ({sign}); model `{card.name}` is "
        f"{_family(card.text_channels)}: use one made for that"
    )
