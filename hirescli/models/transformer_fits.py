"""Whether a LoRA was made for FLUX or SD3, by names and shapes. No torch.

Two layouts are read: that of diffusers (``transformer.`` and ``text_encoder.`` before the name of
a layer), and, for FLUX, that of kohya's scripts, which have queries, keys and values in one layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from hirescli.errors import RequestError
from hirescli.models.safetensors_check import Tensors
from hirescli.planning.card import Card

Pair = tuple[str, str]  # names of two factors, the reducing one first
_FAMILIES = {"flux": "FLUX", "sd3": "Stable Diffusion 3.5"}
_DENOISER = "transformer."
_TEXT = {
    "flux": ("text_encoder.", "lora_te1_", "lora_te_"),
    "sd3": ("text_encoder.", "text_encoder_2."),
}
_TEXT_5 = ("text_encoder_2.", "text_encoder_3.", "lora_te2_", "lora_te3_")  # T5's: not changed
_OF_UNETS = ("unet.", "lora_unet_down_", "lora_unet_mid_", "lora_unet_up_", "lora_unet_input_",
             "lora_unet_middle_", "lora_unet_output_")  # fmt: skip
_KOHYA = re.compile(r"lora_unet_(?P<kind>double|single)_blocks_(?P<number>\d+)_(?P<layer>\w+)")
_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
# What kohya calls a layer of FLUX, and the layers of diffusers that it is.
_DOUBLE = {
    "img_attn_qkv": _ATTENTION, "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",), "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",), "txt_attn_qkv": _TEXT_ATTENTION,
    "txt_attn_proj": ("attn.to_add_out",), "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",), "txt_mod_lin": ("norm1_context.linear",),
}  # fmt: skip
_SINGLE = {
    "linear1": (*_ATTENTION, "proj_mlp"), "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}  # fmt: skip
_BLOCKS = {"double": ("transformer_blocks", _DOUBLE), "single": ("single_transformer_blocks",
           _SINGLE)}  # fmt: skip


def check_names(tensors: Tensors, pairs: list[Pair], card: Card) -> None:
    """Refuse tensors of other families, and those that would be left out.

    Raises:
        RequestError: Naming the first.
    """
    path, factors = tensors.path, {name for pair in pairs for name in pair}
    for name in tensors.shapes:
        if name.startswith(_OF_UNETS):
            raise RequestError(_other(path, "Stable Diffusion 1.5, 2.1 or XL", card, name))
        if not name.startswith((_DENOISER, *_TEXT[card.family])) and not _is_kohya(name, card):
            raise RequestError(f"{path}: {name} {_unread(name)}")
        if name not in factors and not (name.startswith("lora_") and name.endswith(".alpha")):
            raise RequestError(
                f"{path}: {name} is no part of a plain LoRA (two factors and an alpha), and "
                "other kinds are not run"
            )


def check_shapes(
    tensors: Tensors, pairs: list[Pair], layers: Mapping[str, tuple[int, ...]], card: Card
) -> None:
    """Refuse factors without a layer of the denoiser, or of another shape than its weight.

    Raises:
        RequestError: Naming the first.
    """
    path, shapes = tensors.path, tensors.shapes
    for down, up in pairs:
        layers_of_it = targets(down)
        if not layers_of_it:
            continue
        if any(name not in layers for name in layers_of_it):
            raise RequestError(f"{_misfit(path, card)}: it has no layer {down}")
        columns = layers[layers_of_it[0]][1]
        rows = sum(layers[name][0] for name in layers_of_it)
        for name, side, wanted in ((down, 1, columns), (up, 0, rows)):
            if len(shapes[name]) != 2 or shapes[name][side] != wanted:
                raise RequestError(
                    f"{_misfit(path, card)}: {name} is of shape {shapes[name]}, the layer of "
                    f"({rows}, {columns})"
                )


def targets(down: str) -> tuple[str, ...]:
    """The layers of the denoiser that a pair changes, by its first factor; of text encoders ()."""
    if down.startswith(_DENOISER):
        return (down.removeprefix(_DENOISER).split(".lora", 1)[0],)
    found = _KOHYA.match(down)
    if found is None:
        return ()
    blocks, names = _BLOCKS[found["kind"]]
    layer = found["layer"]
    return tuple(f"{blocks}.{found['number']}.{name}" for name in names.get(layer, (layer,)))


def is_converted(pairs: list[Pair]) -> bool:
    """Whether diffusers gives the layers other numbers than the file has: halves, and scaled."""
    return any(down.startswith("lora_") for down, _ in pairs)


def first_unchanged(
    pairs: list[Pair], denoiser: Mapping[str, object], text: Mapping[str, object]
) -> str | None:
    """The first factor of a converted file that no layer has got; None if all are somewhere.

    Args:
        pairs: Of the file.
        denoiser: Layers that are changed.
        text: The same of the text encoder.
    """
    in_text = list(_without_layers(pairs))
    for down, _ in pairs:
        if any(name not in denoiser for name in targets(down)):
            return down
    return in_text[-1] if len(in_text) > len(text) else None


def _without_layers(pairs: list[Pair]) -> Iterator[str]:
    return (down for down, _ in pairs if not targets(down))


def _is_kohya(name: str, card: Card) -> bool:
    return card.family == "flux" and _KOHYA.match(name) is not None


def _misfit(path: Path, card: Card) -> str:
    return f"{path} is a LoRA for another model than `{card.name}`"


def _other(path: Path, family: str, card: Card, sign: str) -> str:
    return (
        f"{path} is a LoRA for {family} ({sign}); model `{card.name}` is "
        f"{_FAMILIES[card.family]}: use one made for that"
    )


def _unread(name: str) -> str:
    if name.startswith(_TEXT_5):
        return "changes T5 or a text encoder that LoRAs are not loaded into; leave that part out"
    return (
        "does not say which component it changes; save it with diffusers' save_lora_weights, "
        "whose names begin with transformer or text_encoder"
    )
