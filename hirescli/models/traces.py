"""Recording the traces of a model's components: what cards ship beside their facts.

``python -m hirescli.models.traces`` records those of the shipped cards anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hirescli.bands.engine import banded
from hirescli.bands.graph import Graph, parameter_names
from hirescli.bands.tensor import naming_modules
from hirescli.planning.card import COMPONENTS, write_trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from hirescli.bands.tensor import BandedTensor
    from hirescli.models.load import Model
    from hirescli.planning.trace import Trace

_LATENT_SIDE = 32  # of the picture that is recorded; a trace holds for every size


def record(model: Model, component: str) -> Trace:
    """The trace of one component, in the dtype that the model was loaded in.

    Args:
        model: With its adapter mounted.
        component: "denoiser", "decoder" or "encoder".
    """
    card, unet, autoencoder = model.card, model.unet, model.autoencoder
    calls: dict[str, tuple[Any, int, int, Callable[[BandedTensor], Any]]] = {
        "denoiser": (unet, card.latent_channels, 1, lambda x: _denoised(model, x)),
        "decoder": (
            autoencoder, card.latent_channels, 1,
            lambda z: autoencoder.decode(z, return_dict=False)[0],
        ),
        "encoder": (
            autoencoder, 3, card.vae_factor,
            lambda x: autoencoder.encode(x, return_dict=False)[0],
        ),
    }  # fmt: skip
    module, channels, factor, call = calls[component]
    side = _LATENT_SIDE * factor
    image = banded((1, channels, side, side), _nothing, dtype=module.dtype, device="cpu")
    with torch.no_grad(), naming_modules(module):
        made = call(image)
    return Graph.of(made.nodes, parameter_names(module)).trace


def _nothing(lo: int, hi: int) -> torch.Tensor:
    raise AssertionError("a recorded input is never read")


def _denoised(model: Model, sample: BandedTensor) -> BandedTensor:
    unet = model.unet
    states = torch.zeros(1, model.card.text_tokens, unet.config["cross_attention_dim"])
    made: BandedTensor = unet(sample, 0, states.to(unet.dtype), return_dict=False)[0]
    return made


def main() -> None:
    """Record the traces of all shipped cards."""
    from hirescli.models.load import load
    from hirescli.models.registry import cards

    for card in cards():
        for dtype in ("float32", "bfloat16"):
            model = load(card, dtype=dtype)
            for component in COMPONENTS:
                write_trace(card, component, dtype, record(model, component))


if __name__ == "__main__":
    main()
