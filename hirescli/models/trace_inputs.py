"""What a module is called with to be recorded: shapes and dtypes, nothing that is read."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from hirescli.bands.engine import banded_input
from hirescli.bands.samples import banded_places
from hirescli.bands.tensor import BandedTensor, Grid

if TYPE_CHECKING:
    from hirescli.planning.card import Card

LATENT_SIDE = 32  # of the picture that is recorded; a trace holds for every size


def nothing(lo: int, hi: int) -> torch.Tensor:
    """Rows of a recorded input."""
    raise AssertionError("a recorded input is never read")


def text_condition(module: Any, card: Card) -> dict[str, Any]:
    """Time, text and pooled text of a transformer of text and picture."""
    device = next(module.parameters()).device
    states = {
        "encoder_hidden_states": (1, card.text_tokens, module.config["joint_attention_dim"]),
        "pooled_projections": (1, module.config["pooled_projection_dim"]),
        "timestep": (1,),
    }
    return {
        key: torch.zeros(size, dtype=module.dtype, device=device) for key, size in states.items()
    }


def flux_condition(module: Any, card: Card, side: int, *, guided: bool) -> dict[str, Any]:
    """The same of FLUX, with places of the text and of side x side tokens."""
    device = next(module.parameters()).device
    return text_condition(module, card) | {
        "img_ids": banded_places(Grid(side, side, Fraction(1), 1), device),
        "txt_ids": torch.zeros(card.text_tokens, 3, dtype=module.dtype, device=device),
        "guidance": torch.ones(1, device=device) if guided else None,
    }


def flux_tokens(module: Any, side: int, channels: int) -> BandedTensor:
    """Tokens (1, side x side, channels)."""
    return banded_input(
        (1, side * side, channels), nothing, dtype=module.dtype,
        device=next(module.parameters()).device, grid=Grid(side, side, Fraction(1), 1),
    )  # fmt: skip
