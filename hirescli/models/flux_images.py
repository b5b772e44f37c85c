"""IP-Adapters for FLUX: whether one fits a model. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hirescli.errors import RequestError
from hirescli.models.flux_controls import SHARED
from hirescli.models.safetensors_check import Tensors
from hirescli.planning.card import Card

# Names as published, and what diffusers calls the same.
_NAMES = (
    (re.compile(r"^double_blocks\.(\d+)\.processor\."), r"ip_adapter.\1."),
    (re.compile(r"ip_adapter_double_stream_([kv])_proj"), r"to_\1_ip"),
    (re.compile(r"^ip_adapter_proj_model\."), "image_proj."),
)
_BLOCK = re.compile(r"ip_adapter\.(\d+)\.to_[kv]_ip\.(weight|bias)")
_TOKENS = (4, 16)  # that diffusers makes of a picture; 16 of one width alone
_WIDE_ROWS = 65536
_BLOCKS = 19  # of a transformer whose config leaves it out


def is_for_flux(tensors: Tensors) -> bool:
    """Whether an IP-Adapter has the layers of those for FLUX, whose projections have a bias."""
    return any(name.endswith("to_k_ip.bias") for name in _named(tensors))


def check_flux_images(
    tensors: Tensors, encoder: Mapping[str, Any], transformer: Mapping[str, Any], card: Card
) -> None:
    """Refuse an IP-Adapter that was not made for a model of FLUX.

    Args:
        tensors: Of the adapter.
        encoder: Config of its image encoder.
        transformer: The denoiser's config.
        card: Of the model.

    Raises:
        RequestError: If it is none, of another family or width, or of another image encoder.
    """
    shapes, where = _named(tensors), tensors.path
    if not any(name.startswith("ip_adapter.") for name in shapes):
        raise RequestError(f"{where} is no IP-Adapter: it has no ip_adapter and image_proj")
    if not is_for_flux(tensors):
        raise RequestError(
            f"{where} is a picture adapter for a Stable Diffusion model with a UNet; model "
            f"`{card.name}` is FLUX: use one made for that"
        )
    width = transformer.get("joint_attention_dim") or SHARED["joint_attention_dim"]
    wanted = _layers(transformer, width) | _projection(shapes, width)
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            raise RequestError(
                f"{where} is an IP-Adapter for another model than `{card.name}`: {name} is of "
                f"shape {shapes.get(name, 'none')}, not {shape}"
            )
    further = [name for name in shapes if _BLOCK.fullmatch(name) and name not in wanted]
    if further:
        raise RequestError(
            f"{where} is an IP-Adapter for another model than `{card.name}`, which has no block "
            f"for {further[0]}"
        )
    _check_encoder(tensors, shapes["image_proj.proj.weight"][1], encoder)


def _named(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Shapes by diffusers' names."""
    made = {}
    for name, shape in tensors.shapes.items():
        for pattern, other in _NAMES:
            name = pattern.sub(other, name)
        made[name] = tuple(shape)
    return made


def _layers(transformer: Mapping[str, Any], width: int) -> dict[str, tuple[int, ...]]:
    """Keys and values of the blocks with text apart; the others read no pictures."""
    sides = ("num_attention_heads", "attention_head_dim")
    heads, channels = (transformer.get(key) or SHARED[key] for key in sides)
    made: dict[str, tuple[int, ...]] = {}
    for block in range(transformer.get("num_layers", _BLOCKS)):
        for layer in ("to_k_ip", "to_v_ip"):
            made[f"ip_adapter.{block}.{layer}.weight"] = (heads * channels, width)
            made[f"ip_adapter.{block}.{layer}.bias"] = (heads * channels,)
    return made


def _projection(shapes: Mapping[str, tuple[int, ...]], width: int) -> dict[str, tuple[int, ...]]:
    """From a picture's embedding to its tokens, of as many channels as the file says."""
    found = shapes.get("image_proj.proj.weight", ())
    few, many = _TOKENS
    rows = _WIDE_ROWS if found[:1] == (_WIDE_ROWS,) == (many * width,) else few * width
    return {
        "image_proj.proj.weight": (rows, found[-1] if found else 0),
        "image_proj.proj.bias": (rows,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }


def _check_encoder(tensors: Tensors, channels: int, encoder: Mapping[str, Any]) -> None:
    own = encoder.get("vision_config", encoder).get("projection_dim", _CLIP_CHANNELS)
    if own != channels:
        raise RequestError(
            f"{tensors.path} reads {channels} channels of a picture, and its image encoder gives "
            f"{own}; put the encoder that it was made with beside it"
        )


_CLIP_CHANNELS = 512  # of an encoder whose config leaves it out
