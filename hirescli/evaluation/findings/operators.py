"""Linear attention with parts left out, to see what they are good for; the product has none.

Shapes: B batch, H heads, N tokens, d channels per head.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hirescli.attention.linfusion import EPSILON, LinearAttention, phi

if TYPE_CHECKING:
    from collections.abc import Iterator


class VariantAttention(nn.Module):
    """A linear attention's projections with another operator behind them.

    Args:
        inner: The projections, which learn.
        normalised: Whether a query's weights are divided by their sum. If not, they are divided
            by what that sum is about at `tokens`, so that the scale is right at that size.
        causal: Whether a token sees those before it and itself only, in the order of rows.
        tokens: N at the size of training.
    """

    def __init__(
        self, inner: LinearAttention, *, normalised: bool, causal: bool, tokens: int
    ) -> None:
        super().__init__()
        self.inner, self.normalised, self.causal, self.tokens = inner, normalised, causal, tokens

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C)."""
        inner, x = self.inner, hidden_states
        q = inner.to_q(x + inner.to_q_(x))
        k = inner.to_k(x + inner.to_k_(x))
        q_BHNd, k_BHNd, v_BHNd = (
            t.float().unflatten(-1, (inner.heads, -1)).transpose(1, 2)
            for t in (q, k, inner.to_v(x))
        )
        with torch.autocast(x.device.type, enabled=False):
            out_BHNd = self._attend(phi(q_BHNd), phi(k_BHNd), v_BHNd).to(q.dtype)
        projected: Tensor = inner.to_out[0](out_BHNd.transpose(1, 2).flatten(2))
        return projected

    def _attend(self, phi_q: Tensor, phi_k: Tensor, v: Tensor) -> Tensor:
        """Written with all N x N weights, which a causal sum would need blocks to avoid."""
        weights_BHNN = phi_q @ phi_k.mT
        tokens, channels = phi_q.shape[2:]
        seen = torch.full((tokens, 1), float(tokens), device=v.device)  # keys of each query
        if self.causal:
            weights_BHNN = weights_BHNN.tril()
            seen = torch.arange(1.0, tokens + 1, device=v.device)[:, None]
        if self.normalised:
            weight_BHN1 = weights_BHNN.sum(-1, keepdim=True) + EPSILON * seen
        else:  # phi is about 1, so a weight is about d
            weight_BHN1 = seen.new_tensor(float(self.tokens * channels))
        return (weights_BHNN @ v) / weight_BHN1


@contextmanager
def _counting(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, int]]:
    found: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda _module, args, kwargs: found.__setitem__(
            name, (args[0] if args else kwargs["hidden_states"]).shape[1]
        )

    hooks = [
        module.register_forward_pre_hook(count(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def tokens_of(unet: Any, names: Mapping[str, object], side: int) -> dict[str, int]:
    """How many tokens each of these attentions sees at latents of a size."""
    config, dtype = unet.config, unet.dtype
    x = torch.zeros(1, config["in_channels"], side, side, dtype=dtype)
    text = torch.zeros(1, 1, config["cross_attention_dim"], dtype=dtype)
    with _counting({name: unet.get_submodule(name) for name in names}) as found:
        unet(x, 0, text)
    return found
