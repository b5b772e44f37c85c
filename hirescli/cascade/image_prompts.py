"""Image prompts of FLUX: told to its transformer at every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_ATTENTION = "joint_attention_kwargs"
_EMBEDS = "ip_adapter_image_embeds"


@contextmanager
def prompted(transformer: nn.Module, embeds: Sequence[Tensor]) -> Iterator[None]:
    """Tell a transformer with an IP-Adapter what its pictures are, while the context lasts.

    Diffusers' pipelines differ in this: of those with ControlNets one takes no pictures, and what
    they pass on to the transformer goes to the ControlNets too, which warn of it.

    Args:
        transformer: A `FluxTransformer2DModel`.
        embeds: For each picture (1, 1, channels).
    """

    def told(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # Anew for every call: the transformer takes them out.
        others = kwargs.get(_ATTENTION) or {}
        return args, {**kwargs, _ATTENTION: {**others, _EMBEDS: list(embeds)}}

    hook = transformer.register_forward_pre_hook(told, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
