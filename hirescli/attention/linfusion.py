"""LinFusion: generalised linear attention in place of a UNet's self-attention.

Shapes: B batch, N tokens, C channels, H heads, d channels per head.

References:
    LinFusion: 1 GPU, 1 Minute, 16K Image, https://arxiv.org/abs/2409.02097
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EPSILON = 1e-4


def phi(t: Tensor) -> Tensor:
    """The kernel's feature map ``elu(t) + 1``, positive everywhere; any shape."""
    return F.elu(t) + 1.0


def linear_attention(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:  # noqa: N803
    """Normalised, non-causal linear attention in O(N).

    For each query n: ``phi(q_n) · kv / (phi(q_n) · mean_k + 1e-4)``, where
    ``kv = Σ_m phi(k_m) v_mᵀ / N`` and ``mean_k = Σ_m phi(k_m) / N``.
    The sums run in float32 whatever the inputs are: at four million tokens half precision
    overflows, and the mean is taken by scaling both factors with N^-1/2 before they are summed.

    Args:
        q_BHNd: Queries (B, H, N, d), before the feature map.
        k_BHNd: Keys (B, H, N, d), before the feature map.
        v_BHNd: Values (B, H, N, d).

    Returns:
        (B, H, N, d) in the dtype of the values.
    """
    dtype = v_BHNd.dtype
    with _without_autocast(q_BHNd.device.type):
        phi_q, phi_k = phi(q_BHNd.float()), phi(k_BHNd.float())
        scale = k_BHNd.shape[2] ** -0.5
        kv_BHdd = (phi_k * scale).transpose(2, 3) @ (v_BHNd.float() * scale)
        mean_k_BHd1 = phi_k.mean(dim=2, keepdim=True).transpose(2, 3)
        out_BHNd: Tensor = (phi_q @ kv_BHdd) / (phi_q @ mean_k_BHd1 + EPSILON)
        return out_BHNd.to(dtype)


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    available = torch.amp.autocast_mode.is_autocast_available(device_type)  # not on "meta"
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


class LinearAttention(nn.Module):
    """Self-attention of one block: projections, their non-linear shifts, linear attention.

    Args:
        dim_n: Channels C of the tokens.
        heads: Heads H; C is a multiple of it.
        projection_mid_dim: Width of the shift f (Linear, LayerNorm, LeakyReLU, Linear) that is
            added to what queries and keys are made from; None: C; -1: no shift.
    """

    def __init__(self, dim_n: int, heads: int, projection_mid_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        # What `mount` put this in place of; a tuple hides it from state_dict.
        self.replaced: tuple[nn.Module, ...] = ()
        self.to_q = nn.Linear(dim_n, dim_n, bias=False)
        self.to_k = nn.Linear(dim_n, dim_n, bias=False)
        self.to_v = nn.Linear(dim_n, dim_n, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim_n, dim_n)])
        self.to_q_ = _shift(dim_n, projection_mid_dim)
        self.to_k_ = _shift(dim_n, projection_mid_dim)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C); diffusers calls it in place of ``Attention``.

        Raises:
            ValueError: If asked for cross-attention or a mask, which this operator has not.
        """
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("linear attention replaces unmasked self-attention only")
        q = self.to_q(hidden_states + self.to_q_(hidden_states) if self.to_q_ else hidden_states)
        k = self.to_k(hidden_states + self.to_k_(hidden_states) if self.to_k_ else hidden_states)
        v = self.to_v(hidden_states)
        q_BHNd, k_BHNd, v_BHNd = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v)
        )
        out_BHNd = linear_attention(q_BHNd, k_BHNd, v_BHNd)
        return self.to_out[0](out_BHNd.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _shift(dim_n: int, mid_dim: int | None) -> nn.Sequential | None:
    """The function f of the paper, starting at zero, so that a fresh one changes nothing."""
    if mid_dim == -1:
        return None
    width = dim_n if mid_dim is None else mid_dim
    shift = nn.Sequential(
        nn.Linear(dim_n, width),
        nn.LayerNorm(width),
        nn.LeakyReLU(inplace=True),
        nn.Linear(width, dim_n),
    )
    nn.init.zeros_(shift[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(shift[-1].bias)  # type: ignore[arg-type]
    return shift


@dataclass(frozen=True)
class AdapterEntry:
    """One replaced attention, as the published ``config.json`` lists it."""

    module_name: str
    dim_n: int
    heads: int
    projection_mid_dim: int | None = None


class LinFusionAdapter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The linear attentions of one UNet in the published format: entry i under the name ``i``."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, modules_list: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for index, entry in enumerate(self.entries):
            module = LinearAttention(entry.dim_n, entry.heads, entry.projection_mid_dim)
            self.add_module(str(index), module)

    @property
    def entries(self) -> list[AdapterEntry]:
        """What is replaced, in the order of the modules; unknown keys of the file are left out."""
        known = AdapterEntry.__dataclass_fields__
        return [
            AdapterEntry(**{key: value for key, value in entry.items() if key in known})
            for entry in self.config["modules_list"]
        ]

    @classmethod
    def for_unet(cls, unet: nn.Module, *, mid_dim_scale: int = 1) -> LinFusionAdapter:
        """A fresh adapter that starts from the projections of the UNet's self-attentions."""
        attentions = dict(_self_attentions(unet))
        entries = [
            AdapterEntry(name, a.to_q.in_features, a.heads, a.to_q.in_features // mid_dim_scale)
            for name, a in attentions.items()
        ]
        adapter: LinFusionAdapter = cls(modules_list=[asdict(entry) for entry in entries])
        for module, attention in zip(adapter.children(), attentions.values(), strict=True):
            module.load_state_dict(attention.state_dict(), strict=False)
        return adapter


def _self_attentions(unet: nn.Module) -> Iterator[tuple[str, Attention]]:
    for name, module in unet.named_modules():
        if name.endswith("attn1") and isinstance(module, Attention):
            yield name, module


def mount(unet: nn.Module, adapter: LinFusionAdapter) -> None:
    """Put the adapter's modules where the UNet's self-attentions are; ``unmount`` restores.

    Raises:
        ValueError: If the adapter was made for attentions that this UNet has not.
    """
    wanted = {name: (a.to_q.in_features, a.heads) for name, a in _self_attentions(unet)}
    given = {entry.module_name: (entry.dim_n, entry.heads) for entry in adapter.entries}
    if wanted != given:
        first = min(set(wanted.items()) ^ set(given.items()))[0]
        raise ValueError(
            f"the LinFusion adapter does not fit this model: {first} is "
            f"{wanted.get(first, 'absent')} in the model and {given.get(first, 'absent')} in the "
            "adapter (channels, heads); use the adapter that was made for this base model"
        )
    for entry, module in zip(adapter.entries, adapter.children(), strict=True):
        parent, _, name = entry.module_name.rpartition(".")
        owner = unet.get_submodule(parent)
        assert isinstance(module, LinearAttention)
        module.replaced = (owner.get_submodule(name),)
        setattr(owner, name, module)


def unmount(unet: nn.Module) -> None:
    """Put back the self-attentions that ``mount`` replaced; a UNet without any stays as it is."""
    replaced = [(n, m) for n, m in unet.named_modules() if isinstance(m, LinearAttention)]
    for name, module in replaced:
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, module.replaced[0])
