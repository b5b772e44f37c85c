"""CLEAR as an attention processor of diffusers' FLUX and SD3 transformers.

Shapes: B batch, N tokens, H heads, d channels per head.

The processor does what diffusers' own does, but for the attention itself: projections, norms,
rotary embeddings, and the projections of what comes out stay those of the attention module that
calls it, with whatever LoRAs lie on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from hirescli.attention import clear_bands  # noqa: F401 (for the handlers that it registers)
from hirescli.attention.clear import clear_attention, proportional_scale
from hirescli.attention.clear_geometry import Geometry
from hirescli.errors import RequestError

GRID = "clear_grid"  # among a call's `joint_attention_kwargs`


class TokenGrid(NamedTuple):
    """Rows and columns of the image's tokens in one call."""

    rows: int
    columns: int


@dataclass
class Settings:
    """What all processors of one transformer share.

    Attributes:
        window: In tokens.
        down_factor: Side of pooled squares; 1: nothing is pooled.
        text_first: Whether text tokens lie before those of the image.
        proportional: Whether scores are scaled by the number of tokens.
    """

    window: int
    down_factor: int
    text_first: bool
    proportional: bool = False


class ClearProcessor(nn.Module):
    """CLEAR's attention in one attention module.

    Args:
        settings: Shared with the other processors of the transformer.
        image_prompts: The processor of an IP-Adapter that this one takes the place of; None:
            there is none.
        device, dtype: Of `spatial_weight`.
    """

    def __init__(
        self,
        settings: Settings,
        image_prompts: nn.Module | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.image_prompts = image_prompts
        f = settings.down_factor
        self.spatial_weight: nn.Parameter | None = None
        if f > 1:
            # The mean of a square, to begin with.
            weight = torch.full((1, 1, 1, f, 1, f, 1), 1 / f**2, device=device, dtype=dtype)
            self.spatial_weight = nn.Parameter(weight)

    # Not `forward`: diffusers reads the names of the arguments from `__call__`.
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        ip_hidden_states: list[Tensor] | None = None,
        ip_adapter_masks: Any = None,
        clear_grid: TokenGrid | None = None,
    ) -> Any:
        """Attention of one block, as diffusers calls it.

        Args:
            attn: The attention module.
            hidden_states: Of the image (B, N, C); in FLUX's single blocks text lies before it.
            encoder_hidden_states: Of the text; None where there is none, or it lies before.
            attention_mask: None: CLEAR has its own.
            image_rotary_emb: Cosines and sines, each (N of all tokens, d); None: SD3.
            ip_hidden_states: Of image prompts.
            ip_adapter_masks: Of no effect, as in diffusers' own.
            clear_grid: Of the image.

        Returns:
            Image, or image and text, or image, text and image prompts, as diffusers' own.

        Raises:
            RequestError: If there is a mask, or the grid is not known or not of this image.
        """
        if attention_mask is not None:
            raise RequestError("CLEAR has a mask of its own, and was given another; leave it out")
        q, k, v = _heads(attn, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), hidden_states)
        q_image = q
        if encoder_hidden_states is not None:
            names = ("add_q_proj", "add_k_proj", "add_v_proj")
            added = _heads(attn, names, ("norm_added_q", "norm_added_k"), encoder_hidden_states)
            q, k, v = (
                self._joined(text, image) for text, image in zip(added, (q, k, v), strict=True)
            )
        if image_rotary_emb is not None:
            q, k = (_rotated(t, image_rotary_emb) for t in (q, k))
        geometry = self._geometry(clear_grid, q.shape[1])
        out = clear_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), geometry,
            scale=self._scale(q.shape[-1], geometry), spatial_weight=self.spatial_weight,
        )  # fmt: skip
        out = out.transpose(1, 2).flatten(2, 3)
        if encoder_hidden_states is None:
            return _projected(attn, out)
        image, text = self._split(out, encoder_hidden_states.shape[1])
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        if self.image_prompts is None or ip_hidden_states is None:
            return _projected(attn, image), text
        return (
            _projected(attn, image),
            text,
            _prompted(self.image_prompts, q_image, ip_hidden_states),
        )

    def _joined(self, text: Tensor, image: Tensor) -> Tensor:
        return torch.cat([text, image] if self.settings.text_first else [image, text], dim=1)

    def _split(self, out: Tensor, text_tokens: int) -> tuple[Tensor, Tensor]:
        """Image and text."""
        if self.settings.text_first:
            return out[:, text_tokens:], out[:, :text_tokens]
        image_tokens = out.shape[1] - text_tokens
        return out[:, :image_tokens], out[:, image_tokens:]

    def _geometry(self, grid: TokenGrid | None, tokens: int) -> Geometry:
        if grid is None:
            raise RequestError(
                "CLEAR does not know the rows and columns of this image; call the transformer "
                "itself, not one of its blocks"
            )
        geometry = geometry_of(grid, self.settings, tokens - grid.rows * grid.columns)
        assert geometry.text_tokens >= 0
        return geometry

    def _scale(self, channels: int, geometry: Geometry) -> float | None:
        if not self.settings.proportional:
            return None
        return proportional_scale(channels, geometry.tokens, pooled=self.settings.down_factor > 1)


def geometry_of(grid: TokenGrid, settings: Settings, text_tokens: int) -> Geometry:
    """The sequence of a call.

    Raises:
        RequestError: If the image is too small for the window, or the down factor does not
            divide it.
    """
    return Geometry(*grid, settings.window, settings.down_factor, text_tokens, settings.text_first)


def _heads(
    attn: Any, projections: tuple[str, ...], norms: tuple[str, ...], states: Tensor
) -> list[Tensor]:
    """Queries, keys and values (B, N, H, d), the first two normed where the model does so."""
    made = [getattr(attn, name)(states).unflatten(-1, (attn.heads, -1)) for name in projections]
    for i, name in enumerate(norms):
        norm = getattr(attn, name, None)
        if norm is not None:
            made[i] = norm(made[i])
    return made


def _rotated(t_BNHd: Tensor, rotary: Any) -> Tensor:  # noqa: N803
    made: Any = apply_rotary_emb(t_BNHd, rotary, sequence_dim=1)
    return made  # type: ignore[no-any-return]


def _projected(attn: Any, out: Tensor) -> Tensor:
    """Through `to_out`; FLUX's single blocks have none."""
    if attn.pre_only:
        return out
    for layer in attn.to_out:
        out = layer(out)
    return out


def _prompted(adapter: Any, q_BNHd: Tensor, states: list[Tensor]) -> Tensor:  # noqa: N803
    """What image prompts add, as `FluxIPAdapterAttnProcessor`: attention to their tokens."""
    total = torch.zeros_like(q_BNHd.flatten(2, 3))
    parts = zip(states, adapter.scale, adapter.to_k_ip, adapter.to_v_ip, strict=True)
    for each, scale, to_k, to_v in parts:
        k, v = (
            to(each).flatten(1, -2).unflatten(-1, (q_BNHd.shape[2], -1)).transpose(1, 2)
            for to in (to_k, to_v)
        )
        out = F.scaled_dot_product_attention(q_BNHd.transpose(1, 2), k, v)
        total = total + scale * out.transpose(1, 2).flatten(2, 3)
    return total
