"""`hirescli.linearize` and `unlinearize`: linear attention on a model, and off again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from hirescli.attention.clear_geometry import check_whole
from hirescli.attention.clear_mount import ClearAdapter, check_mountable, mounted
from hirescli.attention.clear_mount import mount as mount_clear
from hirescli.attention.clear_weights import find_weights, load_weights
from hirescli.attention.linfusion import (
    LinearAttention,
    LinFusionAdapter,
    check_fit,
    mount,
    self_attentions,
    unmount,
)
from hirescli.attention.loading import load_adapter
from hirescli.bands.call import StreamedCall
from hirescli.errors import RequestError

Layers = dict[tuple[int, int], int]  # how many self-attentions of so many (channels, heads)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Base:
    """A base model that adapters are published for, known by its attention layers.

    Attributes:
        name: For people.
        cross_attention_dim: Channels of its text states.
        layers: Its self-attentions.
        repository: Of the adapter, on the hub.
    """

    name: str
    cross_attention_dim: int
    layers: Layers
    repository: str


BASES = (
    Base("SD 1.5", 768, {(320, 8): 5, (640, 8): 5, (1280, 8): 6}, "Yuanshi/LinFusion-1-5"),
    Base("SD 2.1", 1024, {(320, 5): 5, (640, 10): 5, (1280, 20): 6}, "Yuanshi/LinFusion-2-1"),
    Base("SDXL", 2048, {(640, 10): 10, (1280, 20): 60}, "Yuanshi/LinFusion-XL"),
)


@overload
def linearize(
    component: Any, method: Literal["linfusion"] = "linfusion", *,
    weights: str | Path | None = None,
) -> LinFusionAdapter: ...  # fmt: skip


@overload
def linearize(
    component: Any, method: Literal["clear"], *,
    weights: str | Path | None = None, window: int | None = None, down_factor: int | None = None,
) -> ClearAdapter: ...  # fmt: skip


def linearize(
    component: Any,
    method: str = "linfusion",
    *,
    weights: str | Path | None = None,
    window: int | None = None,
    down_factor: int | None = None,
) -> LinFusionAdapter | ClearAdapter:
    """Put attention whose time is linear in the pixels in place of a model's own.

    All modules are replaced or, if anything is wrong, none. They run in dtype and on the device
    of those that they replace.

    Args:
        component: A diffusers pipeline, or its UNet or transformer.
        method: "linfusion": for the self-attention of a `UNet2DConditionModel`. "clear": for all
            attention of a `FluxTransformer2DModel` or `SD3Transformer2DModel`.
        weights: Of "linfusion", a folder in the published format or the id of a repository on
            the hub; of "clear", a file, a name such as "clear-16", the id of a repository, or
            "own" for those of the transformer itself. None: as published for the base model,
            which is known by its layers.
        window: Of "clear", in tokens; None: as the weights say, else 16.
        down_factor: Of "clear", the side of squares of tokens that are pooled; None: as the
            weights say, else 1, without pooled tokens.

    Returns:
        What now sits in the model: a `LinFusionAdapter`, whose `save_pretrained(folder)` writes
        the published format, or a `ClearAdapter`, which takes settings between calls.

    Raises:
        RequestError: If there is no such method; if the model is linearised, streamed or
            offloaded already, or a LoRA would be lost; if the weights cannot be found or read,
            or were made for another model or other settings.
    """
    if method == "linfusion":
        if window is not None or down_factor is not None:
            raise RequestError('LinFusion has no window and no down factor; "clear" has')
        return _linfusion(_denoiser(component, "unet"), weights)
    if method == "clear":
        return _clear(_denoiser(component, "transformer"), weights, window, down_factor)
    raise RequestError(f'there is no linear attention "{method}"; there is "linfusion", "clear"')


def unlinearize(component: Any) -> None:
    """Put back what `linearize` replaced: the same modules and weights, untouched.

    A model that is not linearised stays as it is.

    Args:
        component: What was given to `linearize`, or its `unet` or `transformer`.

    Raises:
        RequestError: If it has neither, is streamed, or has a LoRA that would be lost.
    """
    for denoiser in _denoisers(component):
        adapter = mounted(denoiser)
        if adapter is not None:
            adapter.unmount()
        for name, module in denoiser.named_modules():
            if isinstance(module, LinearAttention):
                _refuse_lora(name, module)
        unmount(denoiser)


_WHOSE = {
    "unet": "no UNet; LinFusion replaces the self-attention of UNets such as those of SD 1.5, "
    "SD 2.1 and SDXL",
    "transformer": "no transformer; CLEAR replaces the attention of those of FLUX and SD3",
}


def _denoiser(component: Any, part: str) -> nn.Module:
    module = component if isinstance(component, nn.Module) else getattr(component, part, None)
    if not isinstance(module, nn.Module):
        raise RequestError(f"{type(component).__name__} has {_WHOSE[part]}")
    return _unstreamed(module)


def _denoisers(component: Any) -> list[nn.Module]:
    """The UNet, the transformer, or both."""
    if isinstance(component, nn.Module):
        return [_unstreamed(component)]
    found = [getattr(component, part, None) for part in _WHOSE]
    modules = [_unstreamed(module) for module in found if isinstance(module, nn.Module)]
    if not modules:
        raise RequestError(f"{type(component).__name__} has neither UNet nor transformer")
    return modules


def _unstreamed(module: nn.Module) -> nn.Module:
    if isinstance(getattr(module, "forward", None), StreamedCall):
        raise RequestError(
            f"{type(module).__name__} is streamed; linearise it before hirescli.stream, not inside"
        )
    return module


# CLEAR


def _clear(
    transformer: nn.Module,
    weights: str | Path | None,
    window: int | None,
    down_factor: int | None,
) -> ClearAdapter:
    for number, name in ((window, "window"), (down_factor, "down factor")):
        if number is not None:
            check_whole(number, name)
    check_mountable(transformer)
    file, variant = find_weights(transformer, weights, window, down_factor)
    adapter = mount_clear(transformer, window=variant.window, down_factor=variant.down_factor)
    try:
        if file is not None:
            load_weights(adapter, file)
    except BaseException:
        adapter.unmount()
        raise
    return adapter


# LinFusion


def _linfusion(unet: nn.Module, weights: str | Path | None) -> LinFusionAdapter:
    attentions = dict(self_attentions(unet))
    mounted = [name for name, m in unet.named_modules() if isinstance(m, LinearAttention)]
    if mounted:
        raise RequestError(
            f"{mounted[0]} is linear attention already; call hirescli.unlinearize first"
        )
    if not attentions:
        raise RequestError(f"{type(unet).__name__} has no self-attention to replace")
    for name, attention in attentions.items():
        _refuse_state(name, attention)
    adapter = load_adapter(_published(unet) if weights is None else weights)
    check_fit(unet, adapter)
    for entry, module in zip(adapter.entries, adapter.children(), strict=True):
        weight = attentions[entry.module_name].to_q.weight
        module.to(weight.device, weight.dtype).requires_grad_(weight.requires_grad)
        module.train(attentions[entry.module_name].training)
    mount(unet, adapter)
    return adapter


def _refuse_state(name: str, attention: nn.Module) -> None:
    """Refuse attentions whose weights are not plain ones that the adapter's can stand beside."""
    _refuse_lora(name, attention)
    for path, part in attention.named_modules():
        if hasattr(part, "_hf_hook"):
            raise RequestError(
                f"{name}.{path} has a weights-offload hook of accelerate; linearise the model "
                "before it is offloaded"
            )
    weight: Any = attention.get_parameter("to_q.weight")
    if weight.dtype not in _DTYPES:
        raise RequestError(
            f"{name} has weights in {weight.dtype}; LinFusion needs them in float32, float16 or "
            "bfloat16: load the model without quantisation"
        )


def _refuse_lora(name: str, module: nn.Module) -> None:
    """Refuse LoRA layers: they would stay behind on what is taken out, and have no effect."""
    for path, part in module.named_modules():
        if hasattr(part, "base_layer"):
            raise RequestError(
                f"{name}.{path} has a LoRA, which would be lost; call "
                "pipe.unload_lora_weights() first, and load it again afterwards"
            )


def _published(unet: nn.Module) -> str | Path:
    """Where the adapter of this base model is: a repository, or the built-in model's folder."""
    layers = Counter((a.to_q.in_features, a.heads) for _, a in self_attentions(unet))
    text = getattr(getattr(unet, "config", None), "cross_attention_dim", None)
    for base in BASES:
        if (text, layers) == (base.cross_attention_dim, base.layers):
            return base.repository
    # Models import this layer's operator; theirs is looked at only when it is asked for.
    from hirescli.models.load import WEIGHTS

    try:
        check_fit(unet, load_adapter(WEIGHTS / "linfusion"))
    except RequestError:
        known = ", ".join(base.name for base in BASES)
        raise RequestError(
            f"no LinFusion adapter is known for this UNet ({layers.total()} self-attentions, "
            f"cross_attention_dim {text}); there are those of {known} and the built-in model: "
            "name one that was made for it with weights=..."
        ) from None
    return WEIGHTS / "linfusion"
