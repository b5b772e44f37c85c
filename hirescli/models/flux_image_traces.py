"""What image prompts add to the trace of FLUX's transformer: attention to their tokens.

Every picture counts as the most tokens that published adapters make of one, so that a plan need
not read the adapter.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

from hirescli.attention.clear_mount import mounted
from hirescli.attention.clear_processor import GRID, TokenGrid

_TOKENS = 16
_PICTURES = re.compile(r"-ip(\d+)$")


def pictures_of(component: str) -> tuple[str, int]:
    """A component of a card's traces without its image prompts, and how many these are."""
    found = _PICTURES.search(component)
    return (component, 0) if found is None else (component[: found.start()], int(found[1]))


def mount_pictures(transformer: Any, pictures: int) -> None:
    """Put an IP-Adapter on a transformer without weights; CLEAR is mounted after it."""
    width, channels = transformer.inner_dim, transformer.config["joint_attention_dim"]
    for block in transformer.transformer_blocks if pictures else ():
        block.attn.set_processor(
            FluxIPAdapterAttnProcessor(
                width, channels, num_tokens=(_TOKENS,) * pictures,
                device=transformer.device, dtype=transformer.dtype,
            )
        )  # fmt: skip


def attention_arguments(transformer: Any, side: int, pictures: int) -> dict[str, Any]:
    """What a recorded call of side x side tokens tells the attentions, if anything."""
    given: dict[str, Any] = {}
    if mounted(transformer) is not None:
        given[GRID] = TokenGrid(side, side)
    if pictures:
        shape = (1, _TOKENS, transformer.config["joint_attention_dim"])
        states = torch.zeros(shape, dtype=transformer.dtype, device=transformer.device)
        given["ip_hidden_states"] = [states] * pictures
    return {"joint_attention_kwargs": given} if given else {}
