"""LinFusion: generalised linear attention in place of a UNet's self-attention.

Shapes: B batch, N tokens, C channels, H heads, d = C / H channels per head.

The operator, term by term, for tokens x of one head:

    q = W_q (x + f_q(x))             queries; f is the learned shift, `LinearAttention`
    k = W_k (x + f_k(x))             keys
    v = W_v x                        values
    phi(t) = elu(t) + 1              feature map: positive, so that weights are positive
    kv = sum_m phi(k_m) v_m^T / N    (d, d), all that values and keys say together
    mean_k = sum_m phi(k_m) / N      (d), what the weights of a query add up to
    o_n = phi(q_n) kv / (phi(q_n) mean_k + 1e-4)

Each output is a weighted mean of the values with weights phi(q_n) phi(k_m)^T / N: the same as
softmax attention but for the kernel, and because the kernel factors, no N x N matrix is formed.
The weights of a query are divided by their sum, so that the number of tokens, and with it the
size of the picture, does not change the scale of the output. The 1e-4 keeps the division safe;
it is part of the published operator, and weights were trained with it.

References:
    LinFusion: 1 GPU, 1 Minute, 16K Image, https://arxiv.org/abs/2409.02097
"""

from __future__ import annotations

import json
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hirescli.bands.tensor import BandedTensor
from hirescli.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EPSILON = 1e-4
_BLOCK_TOKENS = 1 << 14
_FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FUSED_MOST_CHANNELS = 256  # of a head; published models have 40 to 160
_plain_only: list[bool] = []


def phi(t: Tensor) -> Tensor:
    """The kernel's feature map ``elu(t) + 1``, positive everywhere; any shape."""
    return F.elu(t) + 1.0


def linear_attention(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:  # noqa: N803
    """Normalised, non-causal linear attention in O(N), by the fastest way there is.

    On CUDA the fused kernels of `linfusion_triton`, where Triton is installed and no gradients
    are needed; everywhere else `plain_linear_attention`, which is their oracle.

    Args:
        q_BHNd: Queries (B, H, N, d), before the feature map.
        k_BHNd: Keys (B, H, N, d), before the feature map.
        v_BHNd: Values (B, H, N, d).

    Returns:
        (B, H, N, d) in the dtype of the values.
    """
    if _fused_applies(q_BHNd, k_BHNd, v_BHNd):
        from hirescli.attention.linfusion_triton import fused_linear_attention

        return fused_linear_attention(q_BHNd, k_BHNd, v_BHNd)
    return plain_linear_attention(q_BHNd, k_BHNd, v_BHNd)


def plain_linear_attention(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:  # noqa: N803
    """The same in plain PyTorch: on any device, with gradients, and what bands record.

    The sums run in float32 whatever the inputs are: at four million tokens half precision
    overflows. The mean is taken by scaling both factors with N^-1/2 before they are summed, as
    the published code does.
    """
    dtype = v_BHNd.dtype
    with _without_autocast(q_BHNd.device.type):
        phi_q = phi(q_BHNd.float())
        kv_BHdd, mean_k_BHd1 = _state(k_BHNd, v_BHNd)
        out_BHNd: Tensor = (phi_q @ kv_BHdd) / (phi_q @ mean_k_BHd1 + EPSILON)
        return out_BHNd.to(dtype)


def _state(k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """State of all keys and values: kv (B, H, d, d) and mean_k (B, H, d, 1).

    Many tokens are summed in blocks: a matrix product adds its terms one after the other, and
    of four million float32 keeps three digits (measured: an error of 4e-4). What bands record
    is one block, since a band is one.
    """
    tokens = k_BHNd.shape[2]
    if isinstance(k_BHNd, BandedTensor) or tokens <= _BLOCK_TOKENS:
        return _share(k_BHNd, v_BHNd, tokens)
    blocks = zip(k_BHNd.split(_BLOCK_TOKENS, 2), v_BHNd.split(_BLOCK_TOKENS, 2), strict=True)
    kv_BHdd, mean_k_BHd1 = torch.zeros(()), torch.zeros(())
    for k, v in blocks:
        kv, mean_k = _share(k, v, tokens)
        kv_BHdd = kv_BHdd.to(kv) + kv
        mean_k_BHd1 = mean_k_BHd1.to(mean_k) + mean_k * (k.shape[2] / tokens)
    return kv_BHdd, mean_k_BHd1


def _share(k_BHNd: Tensor, v_BHNd: Tensor, tokens: int) -> tuple[Tensor, Tensor]:  # noqa: N803
    """What a block adds to kv of so many tokens in all, and its own mean_k."""
    phi_k, scale = phi(k_BHNd.float()), tokens**-0.5
    kv_BHdd = (phi_k * scale).transpose(2, 3) @ (v_BHNd.float() * scale)
    return kv_BHdd, phi_k.mean(dim=2, keepdim=True).transpose(2, 3)


@contextmanager
def plain_operator() -> Iterator[None]:
    """Compute with `plain_linear_attention` while the context lasts, to measure against it."""
    _plain_only.append(True)
    try:
        yield
    finally:
        _plain_only.pop()


def _fused_applies(*tensors: Tensor) -> bool:
    """Whether the fused kernels can take these; `BandedTensor` and its like they cannot."""
    first = tensors[0]
    return (
        first.is_cuda
        and not _plain_only
        and all(type(t) is Tensor and t.dtype in _FUSED_DTYPES for t in tensors)
        and first.shape[-1] <= _FUSED_MOST_CHANNELS
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and not torch.compiler.is_compiling()
        and _fused_works(first.device)
    )


@lru_cache
def _fused_works(device: torch.device) -> bool:
    """Whether the kernels build and run here; tried once, on a few tokens.

    Triton needs a C compiler when a kernel is first launched, and a card that it knows.
    """
    if find_spec("triton") is None:
        return False
    tokens = torch.linspace(-1, 1, 2 * 3 * 40, device=device).view(1, 2, 3, 40)
    try:
        from hirescli.attention.linfusion_triton import fused_linear_attention

        made = fused_linear_attention(tokens, tokens, tokens)
        torch.testing.assert_close(made, plain_linear_attention(tokens, tokens, tokens))
    except Exception as error:  # whatever a compiler, a driver or a wrong result raises
        warnings.warn(
            f"the fused linear attention does not run on {device} ({type(error).__name__}: "
            f"{error}); the plain one is used, which is slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    available = torch.amp.autocast_mode.is_autocast_available(device_type)  # not on "meta"
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


class LinearAttention(nn.Module):
    """Self-attention of one block: projections, their non-linear shifts, linear attention.

    Args:
        dim_n: Channels C of the tokens.
        heads: Heads H; C is a multiple of it.
        projection_mid_dim: Width of the shift f (Linear, LayerNorm, LeakyReLU, Linear) that is
            added to what queries and keys are made from; None: C; -1: f is the identity, so
            that they are made from 2x. (The published code has it so; its weights expect it.)
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
        q = self.to_q(hidden_states + self.to_q_(hidden_states))
        k = self.to_k(hidden_states + self.to_k_(hidden_states))
        v = self.to_v(hidden_states)
        q_BHNd, k_BHNd, v_BHNd = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v)
        )
        out_BHNd = linear_attention(q_BHNd, k_BHNd, v_BHNd)
        return self.to_out[0](out_BHNd.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _shift(dim_n: int, mid_dim: int | None) -> nn.Module:
    """The function f of the paper, starting at zero, so that a fresh one changes nothing."""
    if mid_dim == -1:
        return nn.Identity()
    width = mid_dim or dim_n  # the published code takes 0 as absent, too
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

    def to_json_string(self) -> str:
        """The `config.json`, under the published class's name: others look it up by that."""
        config = json.loads(super().to_json_string())
        return json.dumps({**config, "_class_name": "LinFusion"}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def for_unet(cls, unet: nn.Module, *, mid_dim_scale: int = 1) -> LinFusionAdapter:
        """A fresh adapter that starts from the projections of the UNet's self-attentions."""
        attentions = dict(self_attentions(unet))
        entries = [
            AdapterEntry(name, a.to_q.in_features, a.heads, a.to_q.in_features // mid_dim_scale)
            for name, a in attentions.items()
        ]
        adapter: LinFusionAdapter = cls(modules_list=[asdict(entry) for entry in entries])
        for module, attention in zip(adapter.children(), attentions.values(), strict=True):
            module.load_state_dict(attention.state_dict(), strict=False)
        return adapter


def self_attentions(unet: nn.Module) -> Iterator[tuple[str, Attention]]:
    """The softmax self-attentions of a UNet with their names, in its order."""
    for name, module in unet.named_modules():
        if name.endswith("attn1") and isinstance(module, Attention):
            yield name, module


def check_fit(unet: nn.Module, adapter: LinFusionAdapter) -> None:
    """Check that an adapter has a module for each self-attention of a UNet, and no other.

    Raises:
        RequestError: If it was made for other attentions.
    """
    wanted = {name: (a.to_q.in_features, a.heads) for name, a in self_attentions(unet)}
    given = {entry.module_name: (entry.dim_n, entry.heads) for entry in adapter.entries}
    if wanted != given:
        first = min(set(wanted.items()) ^ set(given.items()))[0]
        raise RequestError(
            f"the LinFusion adapter does not fit this model: {first} is "
            f"{wanted.get(first, 'absent')} in the model and {given.get(first, 'absent')} in the "
            "adapter (channels, heads); use the adapter that was made for this base model"
        )


def mount(unet: nn.Module, adapter: LinFusionAdapter) -> None:
    """Put the adapter's modules where the UNet's self-attentions are; ``unmount`` restores.

    Raises:
        RequestError: If the adapter does not fit; then the UNet is as it was.
    """
    check_fit(unet, adapter)
    attentions = dict(self_attentions(unet))
    for entry, module in zip(adapter.entries, adapter.children(), strict=True):
        parent, _, name = entry.module_name.rpartition(".")
        assert isinstance(module, LinearAttention)
        module.replaced = (attentions[entry.module_name],)
        setattr(unet.get_submodule(parent), name, module)


def unmount(unet: nn.Module) -> None:
    """Put back the self-attentions that ``mount`` replaced; a UNet without any stays as it is."""
    replaced = [(n, m) for n, m in unet.named_modules() if isinstance(m, LinearAttention)]
    for name, module in replaced:
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, module.replaced[0])
