"""Recording the traces of a model's components: what cards ship beside their facts.

``python -m hirescli.models.traces`` records those of the shipped cards anew. All but the built-in
model are recorded on the meta device: modules without weights, made from configs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel

from hirescli.attention.clear_mount import mount as mount_clear
from hirescli.attention.clear_mount import mounted
from hirescli.attention.clear_processor import GRID, TokenGrid
from hirescli.attention.clear_published import DEFAULT_WINDOW, Variant
from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.bands.attention import pooling_keys
from hirescli.bands.engine import banded
from hirescli.bands.graph import Graph, parameter_names
from hirescli.bands.positions import positions_by_rows
from hirescli.bands.tensor import naming_modules
from hirescli.models.components import DENOISERS
from hirescli.models.families import CONFIGS, read_json
from hirescli.models.flux_control_traces import record_flux_controlled, record_flux_controlnet
from hirescli.models.flux_controls import ControlLayout
from hirescli.models.flux_image_traces import attention_arguments, mount_pictures, pictures_of
from hirescli.models.sources import MID_DIM_SCALES
from hirescli.models.trace_inputs import (
    LATENT_SIDE,
    flux_condition,
    flux_tokens,
    nothing,
    text_condition,
)
from hirescli.planning.card import COMPONENTS, CONTROL_COMPONENTS, write_trace

if TYPE_CHECKING:
    from hirescli.bands.tensor import BandedTensor
    from hirescli.models.load import Model
    from hirescli.planning.card import Attention, Card
    from hirescli.planning.trace import Trace

_SIZE_NUMBERS = 6  # SDXL's original size, crop and target size


def record(model: Model, component: str, attention: Attention = "linear") -> Trace:
    """The trace of one component, in the dtype that the model was loaded in.

    Args:
        model: With its adapter loaded, where attention shall be linear.
        component: "denoiser", "decoder" or "encoder".
        attention: Of the denoiser's self-attention.
    """
    if component != "denoiser":
        return record_module(model.autoencoder, component, model.card)
    with model.attending(attention):
        return record_module(model.unet, component, model.card)


def record_module(module: Any, component: str, card: Card, *, pools: bool = True) -> Trace:
    """The trace of a denoiser or autoencoder, with or without weights.

    Args:
        module: On the CPU or the meta device, in the dtype that is wanted.
        component: "denoiser", "decoder" or "encoder".
        card: Of its model: what is around it.
        pools: Whether an autoencoder's attention may pool its keys, as shipped traces do.
    """
    if component == "denoiser" and card.is_transformer:
        return _record_transformer(module, card)
    calls: dict[str, tuple[int, int, Callable[[BandedTensor], Any]]] = {
        "denoiser": (card.latent_channels, 1, lambda x: _denoised(module, card, x)),
        "decoder": (
            card.latent_channels, 1,
            lambda z: module.decode(_unscaled(z, module, card), return_dict=False)[0],
        ),
        "encoder": (3, card.vae_factor, lambda x: _encoded(module, card, x)),
    }  # fmt: skip
    channels, factor, call = calls[component]
    side = LATENT_SIDE * factor
    device = next(module.parameters()).device
    # Latents rest in float32 before they are decoded.
    dtype = torch.float32 if component == "decoder" else module.dtype
    image = banded((1, channels, side, side), nothing, dtype=dtype, device=device)
    pools = pools and card.vae_attention and component != "denoiser"
    with torch.no_grad(), naming_modules(module), pooling_keys(pools):
        made = call(image)
    return Graph.of(made.nodes, parameter_names(module)).trace


# A run scales and shifts latents in two operations (`hirescli.vae.rows`); what it shifts by, which
# is nothing in these families, changes no trace.
_SHIFT = 0.0


def _unscaled(latents: Any, autoencoder: Any, card: Card) -> Any:
    latents = latents.to(autoencoder.dtype)
    return latents if card.vae_scaling == 1 else latents / card.vae_scaling + _SHIFT


def _encoded(autoencoder: Any, card: Card, pixels: BandedTensor) -> Any:
    encoded = autoencoder.encode(pixels, return_dict=False)[0]
    latents = encoded if isinstance(encoded, torch.Tensor) else encoded.mode()
    return (latents if card.vae_scaling == 1 else (latents - _SHIFT) * card.vae_scaling).float()


def _denoised(unet: Any, card: Card, sample: BandedTensor, **options: Any) -> BandedTensor:
    made: BandedTensor = unet(sample, **_condition(unet, card), **options, return_dict=False)[0]
    return made


def _condition(module: Any, card: Card) -> dict[str, Any]:
    """Time, text and sizes for a denoiser or a ControlNet."""
    states = torch.zeros(1, card.text_tokens, module.config["cross_attention_dim"])
    made: dict[str, Any] = {"timestep": 0, "encoder_hidden_states": states.to(module.dtype)}
    if module.config.get("addition_embed_type") == "text_time":
        made |= {"timestep": torch.tensor(1.0), "added_cond_kwargs": _size_condition(module)}
    return made


def _record_transformer(module: Any, card: Card, pictures: int = 0) -> Trace:
    """The trace of a transformer of text and picture, with image prompts on FLUX's."""
    side = LATENT_SIDE * 2 if mounted(module) else LATENT_SIDE  # no smaller than a window of 32
    side //= card.packs
    if card.family == "flux":
        sample = flux_tokens(module, side, module.config["in_channels"])
        made = flux_condition(module, card, side, guided=card.guidance == "embedded")
        made |= attention_arguments(module, side, pictures)
    else:
        shape, device = (1, card.latent_channels, side, side), next(module.parameters()).device
        sample = banded(shape, nothing, dtype=module.dtype, device=device)
        made = text_condition(module, card)
        if mounted(module) is not None:  # a hook would read it from what is not there
            tokens = side // module.config["patch_size"]
            made["joint_attention_kwargs"] = {GRID: TokenGrid(tokens, tokens)}
    with torch.no_grad(), naming_modules(module), positions_by_rows(module, [sample], {}):
        (given,) = module.forward(sample, **made, return_dict=False)
    return Graph.of(given.nodes, parameter_names(module)).trace


def _record_controlled(unet: Any, card: Card, component: str) -> Trace:
    """The trace of a denoiser's ControlNet, or of the denoiser with what one gives it."""
    controlnet: Any = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    controlnet.to(unet.dtype).eval()
    device = next(unet.parameters()).device

    def image(channels: int, factor: int) -> BandedTensor:
        shape = (1, channels, LATENT_SIDE * factor, LATENT_SIDE * factor)
        return banded(shape, nothing, dtype=unet.dtype, device=device, level=factor)

    with torch.no_grad(), naming_modules(controlnet):
        down, middle = controlnet(
            image(card.latent_channels, 1), **_condition(controlnet, card),
            controlnet_cond=image(3, card.vae_factor), return_dict=False,
        )  # fmt: skip
    residuals = [*down, middle]
    if component == "controlnet":
        nodes = [node for residual in residuals for node in residual.nodes]
        return Graph.of(nodes, parameter_names(controlnet)).trace
    sample = image(card.latent_channels, 1)
    given = [
        banded(r.shape, nothing, dtype=r.dtype, device=device, level=r.nodes[0].grid.level)
        for r in residuals
    ]
    with torch.no_grad(), naming_modules(unet):
        made = _denoised(
            unet, card, sample,
            down_block_additional_residuals=given[:-1],
            mid_block_additional_residual=given[-1],
        )  # fmt: skip
    return Graph.of(made.nodes, parameter_names(unet)).trace


def _size_condition(unet: Any) -> dict[str, torch.Tensor]:
    """Pooled text and sizes, as SDXL has them beside the time."""
    width = unet.config["addition_time_embed_dim"]
    pooled = unet.config["projection_class_embeddings_input_dim"] - _SIZE_NUMBERS * width
    return {
        "text_embeds": torch.zeros(1, pooled, dtype=unet.dtype),
        "time_ids": torch.zeros(1, _SIZE_NUMBERS, dtype=unet.dtype),
    }


def record_configs(
    card: Card, configs: Path, adapter: Path | Variant | None, component: str, dtype: str,
    attention: Attention,
) -> Trace:  # fmt: skip
    """The trace of a component of modules without weights.

    Args:
        card: Of the model.
        configs: A folder in diffusers' layout; no weights are read.
        adapter: A LinFusion folder, or what CLEAR is set to; None: what is usual in the family.
        component: As of `Card.trace`.
        dtype: "float32" or "bfloat16".
        attention: Of the denoiser's self-attention.
    """
    from hirescli.models.load import DTYPES, quiet_libraries

    with torch.device("meta"), quiet_libraries():
        if component in ("decoder", "encoder"):
            module = AutoencoderKL.from_config(read_json(configs / "vae" / "config.json"))
            return record_module(module.to(DTYPES[dtype]).eval(), component, card)
        config = read_json(configs / card.denoiser_part / "config.json")
        unet = DENOISERS[config.get("_class_name", "UNet2DConditionModel")].from_config(config)
        unet.to(DTYPES[dtype]).eval()
        if card.is_transformer:
            component, pictures = pictures_of(component)
            mount_pictures(unet, pictures)
            if attention == "linear":
                variant = adapter if isinstance(adapter, Variant) else Variant(DEFAULT_WINDOW)
                mount_clear(unet, window=variant.window, down_factor=variant.down_factor)
            kind, _, layout = component.partition("-")
            if layout and kind == "controlnet":
                return record_flux_controlnet(unet, card, ControlLayout.parse(layout))
            if layout:
                return record_flux_controlled(unet, card, ControlLayout.parse(layout), pictures)
            return _record_transformer(unet, card, pictures)
        assert not isinstance(adapter, Variant)
        if attention == "linear" and component != "controlnet":
            mount(unet, _adapter(unet, card, adapter))
            unet.to(DTYPES[dtype])
        if component in CONTROL_COMPONENTS:
            return _record_controlled(unet, card, component)
        return record_module(unet, component, card)


def _adapter(unet: Any, card: Card, folder: Path | None) -> LinFusionAdapter:
    if folder is not None:
        made: LinFusionAdapter = LinFusionAdapter.from_config(read_json(folder / "config.json"))
        return made
    name = card.traced_as or card.name
    scale: Mapping[str, int] = MID_DIM_SCALES
    fresh: LinFusionAdapter = LinFusionAdapter.for_unet(
        unet, mid_dim_scale=scale.get(name, scale["sd15"])
    )
    return fresh


def main() -> None:
    """Record the traces of all shipped cards."""
    from hirescli.models.load import load
    from hirescli.models.registry import cards

    for card in cards():
        for dtype in ("float32", "bfloat16"):
            model = load(card, dtype=dtype) if card.family == "builtin" else None
            controlled = CONTROL_COMPONENTS if card.family in ("sd", "sdxl") else ()
            for component in (*COMPONENTS, *controlled):
                _record_shipped(card, model, component, dtype)


def _record_shipped(card: Card, model: Model | None, component: str, dtype: str) -> None:
    both: tuple[Attention, ...] = ("linear", "full")
    if card.is_transformer and card.adapter is None:
        both = ("full",)
    for attention in both if component in ("denoiser", "controlled") else both[:1]:
        if model:
            trace = record(model, component, attention)
        else:
            trace = record_configs(card, CONFIGS / card.name, None, component, dtype, attention)
        write_trace(card, component, dtype, trace, attention)


if __name__ == "__main__":
    main()
