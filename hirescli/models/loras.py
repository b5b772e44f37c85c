"""LoRAs: loaded through diffusers, compared with their file, and fused into the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from hirescli.attention.linfusion import LinearAttention, LinFusionAdapter, mount, unmount
from hirescli.errors import RequestError
from hirescli.models.components import DENOISERS, naming
from hirescli.models.families import read_json
from hirescli.models.fits import check_lora, factor_pairs
from hirescli.models.quiet import quiet_libraries
from hirescli.models.safetensors_check import read_tensors
from hirescli.models.text import ClipText
from hirescli.models.transformer_fits import first_unchanged, is_converted
from hirescli.models.transformer_text import TransformerText

if TYPE_CHECKING:
    from hirescli.models.load import Model
    from hirescli.models.sources import ModelSource

_NAME = "lora"  # that PEFT knows the one LoRA by while it is fused


def check_loras(source: ModelSource, paths: Iterable[Path]) -> None:
    """Refuse LoRAs that were not made for a model, by headers and configs alone.

    Raises:
        RequestError: As `apply_loras`, as far as names and shapes tell.
    """
    headers = [read_tensors(path) for path in paths]
    if not headers:
        return
    assert source.configs is not None
    part = source.configs / source.card.denoiser_part
    config = read_json(part / "config.json")
    kind = DENOISERS[config.get("_class_name", "UNet2DConditionModel")]
    with torch.device("meta"), quiet_libraries(), naming(part):
        layers = _linears(kind.from_config(config))
    for tensors in headers:
        check_lora(tensors, layers, source.card)


def apply_loras(model: Model, loras: Sequence[tuple[Path, float]]) -> None:
    """Add LoRAs to a model's weights: denoiser, linear attention, text encoders.

    They are fused, so that the model computes as without any. Linear attention gets what the
    attention it stands for gets, as where a LoRA is loaded with an adapter mounted.

    Args:
        model: Its text encoders not freed yet. Changed in place.
        loras: Files and how strongly each acts.

    Raises:
        RequestError: If a file is missing, damaged or made for another family, or if a part of
            it changes nothing; names the first such tensor.
    """
    for path, _ in loras:
        check_lora(read_tensors(path), _linears(model.unet), model.card)
    for path, scale in loras:
        with quiet_libraries(), naming(path):
            _apply_lora(model, path, scale)


def _linears(unet: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a LoRA can change, by module."""
    kinds = (nn.Linear, nn.Conv2d)
    return {n: tuple(m.weight.shape) for n, m in unet.named_modules() if isinstance(m, kinds)}


def _apply_lora(model: Model, path: Path, scale: float) -> None:
    assert isinstance(model.text, (ClipText, TransformerText))
    part, unet = model.card.denoiser_part, model.unet
    pipeline = model.text.pipeline(**{part: unet})
    mounted = any(isinstance(module, LinearAttention) for module in unet.modules())
    unmount(unet)
    pipeline.load_lora_weights(
        str(path.parent), weight_name=path.name, local_files_only=True, use_safetensors=True,
        adapter_name=_NAME,
    )  # fmt: skip
    named = {part: unet, **model.text.components}
    changed = {
        name: layers for name, module in named.items()
        if isinstance(module, nn.Module) and (layers := _lora_layers(module))
    }  # fmt: skip
    lost = _lost(path, changed, part)
    if lost is None:
        if model.linfusion is not None:
            _add_to_linear(unet, model.linfusion, scale)
        if model.clear is not None:
            _add_to_clear(unet, model.clear, scale)
        pipeline.fuse_lora(components=list(changed), lora_scale=scale, safe_fusing=True)
    pipeline.unload_lora_weights()
    for module in (unet, *(named[name] for name in changed)):
        module.eval().requires_grad_(False)
    if mounted and model.linfusion is not None:
        mount(unet, model.linfusion)
    if lost is not None:
        raise RequestError(
            f"{path} is a LoRA for another model than `{model.card.name}`, or named in a way that "
            f"is not read: {lost} changes no layer"
        )


def _lora_layers(module: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in module.named_modules() if isinstance(m, LoraLayer)}


def _lost(path: Path, changed: Mapping[str, Mapping[str, Any]], part: str) -> str | None:
    """The first factor of a file that no layer has; None if all are somewhere."""
    pairs = factor_pairs(read_tensors(path).shapes)
    if part == "transformer" and is_converted(pairs):
        return first_unchanged(pairs, changed.get(part, {}), changed.get("text_encoder", {}))
    return _first_lost(load_file(path), changed)


def _first_lost(
    tensors: Mapping[str, Tensor], changed: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """The same of a file whose numbers are those of the layers.

    By these numbers, since diffusers renames them in many ways. Rounded to bfloat16, which is
    what they can have been rounded to.
    """
    there = Counter(
        (_print(layer.lora_A[_NAME].weight), _print(layer.lora_B[_NAME].weight))
        for layers in changed.values()
        for layer in layers.values()
    )
    for down, up in factor_pairs(tensors):
        pair = _print(tensors[down]), _print(tensors[up])
        if not there[pair]:
            return down
        there[pair] -= 1
    return None


def _print(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    numbers = tensor.detach().to("cpu", torch.bfloat16).contiguous()
    return tuple(tensor.shape), numbers.view(torch.uint8).numpy().tobytes()


@torch.no_grad()
def _add_to_linear(unet: nn.Module, adapter: LinFusionAdapter, scale: float) -> None:
    """Add to the adapter's projections what a LoRA adds to those of the attention it replaces."""
    layers = _lora_layers(unet)
    for entry, module in zip(adapter.entries, adapter.children(), strict=True):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            layer = layers.get(f"{entry.module_name}.{name}")
            if layer is not None:
                weight = module.get_submodule(name).weight
                assert isinstance(weight, Tensor)
                change = layer.get_delta_weight(_NAME).float() * scale
                weight.copy_(weight.float() + change.to(weight.device))


@torch.no_grad()
def _add_to_clear(transformer: nn.Module, weights: dict[str, Tensor], scale: float) -> None:
    """Add to CLEAR's projections what a LoRA adds to those that they stand in for."""
    layers = _lora_layers(transformer)
    for name, weight in weights.items():
        layer = layers.get(name.removesuffix(".weight"))
        if layer is not None:
            weight.copy_(weight.float() + layer.get_delta_weight(_NAME).float() * scale)
