"""Traces of a ControlNet for FLUX, and of the transformer with what one gives it.

FLUX's ControlNets differ in how many blocks they have, and with that in which blocks of the
transformer read which residual. So there is a trace for each layout, made when it is asked for.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel

from hirescli.attention.clear_mount import mounted
from hirescli.bands.graph import Graph, parameter_names
from hirescli.bands.tensor import BandedTensor, naming_modules
from hirescli.models.flux_controls import SHARED, ControlLayout
from hirescli.models.flux_image_traces import attention_arguments
from hirescli.models.trace_inputs import LATENT_SIDE, flux_condition, flux_tokens

if TYPE_CHECKING:
    from hirescli.planning.card import Card
    from hirescli.planning.trace import Trace


def record_flux_controlnet(transformer: Any, card: Card, layout: ControlLayout) -> Trace:
    """The trace of a ControlNet: its inputs are the sample's tokens and those of its image.

    Its outputs are the residuals that the transformer reads. Its weights are all it has: those
    that make other residuals are in memory too.
    """
    shared = {key: transformer.config[key] for key in SHARED}
    with torch.device(transformer.device):
        controlnet: Any = FluxControlNetModel(**shared, **layout.config)
    controlnet.to(transformer.dtype).eval()
    side, channels = _side(transformer, card), transformer.config["in_channels"]
    with torch.no_grad(), naming_modules(controlnet):
        given = controlnet(
            hidden_states=flux_tokens(controlnet, side, channels),
            controlnet_cond=flux_tokens(controlnet, side, channels),
            **flux_condition(controlnet, card, side, guided=layout.guided), return_dict=False,
        )  # fmt: skip
    read = [
        residual
        for residuals, count in zip(given, _read(transformer, layout), strict=True)
        for residual in (residuals or [])[:count]
    ]
    nodes = [node for residual in read for node in residual.nodes]
    trace = Graph.of(nodes, parameter_names(controlnet)).trace
    every = {name: p.numel() * p.element_size() for name, p in controlnet.named_parameters()}
    return replace(trace, weight_bytes=every | trace.weight_bytes)


def record_flux_controlled(
    transformer: Any, card: Card, layout: ControlLayout, pictures: int = 0
) -> Trace:
    """The trace of the transformer: its inputs are the sample and the residuals it reads.

    Its attention to the tokens of image prompts, of which there are `pictures`, is in it.
    """
    config = transformer.config
    side, width = _side(transformer, card), transformer.inner_dim
    # A trace has its inputs in the order they are made, and the sample comes first.
    sample = flux_tokens(transformer, side, config["in_channels"])
    residuals: list[list[BandedTensor]] = [
        [flux_tokens(transformer, side, width) for _ in range(count)]
        for count in (layout.double, layout.single)
    ]
    made = flux_condition(transformer, card, side, guided=card.guidance == "embedded")
    made |= attention_arguments(transformer, side, pictures)
    with torch.no_grad(), naming_modules(transformer):
        (given,) = transformer.forward(
            sample, **made,
            controlnet_block_samples=residuals[0] or None,
            controlnet_single_block_samples=residuals[1] or None, return_dict=False,
        )  # fmt: skip
    return Graph.of(given.nodes, parameter_names(transformer)).trace


def _side(transformer: Any, card: Card) -> int:
    """Of the picture in tokens: no smaller than a window of CLEAR's."""
    side = LATENT_SIDE * 2 if mounted(transformer) else LATENT_SIDE
    return side // card.packs


def _read(transformer: Any, layout: ControlLayout) -> tuple[int, int]:
    """How many residuals of both kinds diffusers' transformer reads: the last may be left."""

    def read(blocks: int, given: int) -> int:
        return math.ceil(blocks / math.ceil(blocks / given)) if blocks and given else 0

    config = transformer.config
    return (
        read(config["num_layers"], layout.double),
        read(config["num_single_layers"], layout.single),
    )
