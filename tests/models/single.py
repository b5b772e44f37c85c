"""Single files as published: the original names of tensors, written from diffusers' modules.

The names are those of the first Stable Diffusion code; the shapes are the modules' own.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

States = dict[str, Tensor]
_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1", "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k",
    "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def original_names(
    family: str, unet: Any, vae: Any, text: States, text_2: States | None
) -> States:
    """All tensors of a model under the names of a single file."""
    made = {"model.diffusion_model." + n: t for n, t in _unet(unet)}
    made |= {"first_stage_model." + n: t for n, t in _vae(vae)}
    if family == "sd15":
        made |= _prefixed("cond_stage_model.transformer.text_model.", text)
    elif family == "sd21":
        made |= _prefixed("cond_stage_model.model.", _open_clip(text))
    else:
        assert text_2 is not None
        made |= _prefixed("conditioner.embedders.0.transformer.text_model.", text)
        made |= _prefixed("conditioner.embedders.1.model.", _open_clip(text_2))
    return made


def _prefixed(prefix: str, states: States) -> States:
    return {prefix + n.removeprefix("text_model."): t for n, t in states.items()}


def _unet(unet: Any) -> Iterator[tuple[str, Tensor]]:
    per_level = unet.config["layers_per_block"] + 1
    for name, tensor in unet.state_dict().items():
        yield _unet_name(name, per_level, unet), tensor


def _unet_name(name: str, per_level: int, unet: Any) -> str:
    for new, old in _UNET.items():
        if name.startswith(new + "."):
            name = old + name.removeprefix(new)
    match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if match is not None:
        way, level, part, index = match[1], int(match[2]), match[3], int(match[4])
        rest = match[5]
        if part == "downsamplers":
            name = f"input_blocks.{(level + 1) * per_level}.0.op.{rest.removeprefix('conv.')}"
        elif part == "upsamplers":
            attends = hasattr(unet.up_blocks[level], "attentions")
            name = f"output_blocks.{level * per_level + per_level - 1}.{1 + attends}.{rest}"
        else:
            number = level * per_level + index + (way == "down")
            block = "input_blocks" if way == "down" else "output_blocks"
            name = f"{block}.{number}.{int(part == 'attentions')}.{rest}"
    if re.match(r"(input_blocks|output_blocks)\.\d+\.0\.|middle_block\.[02]\.", name):
        for new, old in _RESNET.items():
            name = re.sub(rf"\.{new}\.", f".{old}.", name)
    return name


def _vae(vae: Any) -> Iterator[tuple[str, Tensor]]:
    last = len(vae.config["block_out_channels"]) - 1
    for name, tensor in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        for level in range(last + 1):
            up = f"up_blocks.{level}."
            name = name.replace(f"{up}resnets.", f"up.{last - level}.block.")
            name = name.replace(f"{up}upsamplers.0.", f"up.{last - level}.upsample.")
        for new, old in _VAE.items():
            name = name.replace(f".{new}.", f".{old}.")
        square = ".mid.attn_1." in name and name.endswith("weight") and tensor.ndim == 2
        yield name, tensor[:, :, None, None] if square else tensor  # once convolutions of 1x1


def _open_clip(text: States) -> States:
    """The names of OpenCLIP, which has one more layer than is used and one matrix for q, k, v."""
    text = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    made = {
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
    }
    if "text_projection.weight" in text:
        made["text_projection"] = text["text_projection.weight"].T
    layers = 1 + max(int(n.split(".")[2]) for n in text if n.startswith("encoder.layers."))
    for i in range(layers):
        old, new = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for end in ("weight", "bias"):
            parts = [text[f"{old}self_attn.{k}_proj.{end}"] for k in "qkv"]
            made[f"{new}attn.in_proj_{end}"] = torch.cat(parts)
            for theirs, ours in _OPEN_CLIP.items():
                made[f"{new}{ours}.{end}"] = text[f"{old}{theirs}.{end}"]
    return made


def sparse_file(path: Path, states: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
    """A .safetensors file of zeros in half precision that takes no room on disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in states.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path
