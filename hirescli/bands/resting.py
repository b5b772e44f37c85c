"""Weights that rest on the host while bands are computed on a device.

Operations on rows take theirs with each pass (`execute.PassWeights`). What has no rows, such as
the embedding of a timestep or the keys of a text, is computed while a call is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_map

from hirescli.bands.tensor import BandedTensor


class WeightsFollow(TorchFunctionMode):
    """Operations without rows compute on a device, with copies of weights that rest elsewhere.

    Args:
        device: Where bands are computed, and what such operations are given lies.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = (tuple(args), kwargs)
        if not any(issubclass(kind, BandedTensor) for kind in types) and tree_any(
            self._lies_there, given
        ):
            args, kwargs = tree_map(self._brought, given)
        return func(*args, **kwargs)

    def _lies_there(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device == self._device

    def _brought(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.device != self._device:
            return value.to(self._device)
        return value
