"""One call of a module, recorded and computed in bands in place of its own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hirescli.bands.attention import pooling_keys
from hirescli.bands.engine import Engine, no_collection
from hirescli.bands.positions import positions_by_rows
from hirescli.bands.resting import WeightsFollow
from hirescli.bands.samples import samples_of
from hirescli.bands.tensor import BandedTensor, naming_modules
from hirescli.errors import RequestError


def _enter_nothing(engine: Engine, device: torch.device) -> None:
    pass


@dataclass
class StreamedCall:
    """Stands in for a module's forward: records the call, then computes it in bands.

    Samples of a batch are computed one after the other.

    Attributes:
        name: Path of the module in what it is a part of, for messages; "" for itself.
        module: The module.
        engine: Computes.
        give: Makes of one sample's banded results what the call gives: whole tensors, kept
            ones, or the same where another component reads them.
        enter: Prepares the engine for bands on a device.
        pools: Whether self-attention may pool its keys.
    """

    name: str
    module: nn.Module
    engine: Engine
    give: Callable[[Sequence[BandedTensor]], Sequence[Any]]
    enter: Callable[[Engine, torch.device], None] = _enter_nothing
    pools: bool = False
    forward: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        self.forward = self.module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module gives.

        Raises:
            RequestError: If it cannot be computed in bands.
        """
        device, samples = samples_of(self.forward, args, kwargs, self._title)
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            raise RequestError(
                f"{self._title} is called under autocast, whose dtypes bands cannot follow; load "
                "the model in the dtype it shall run in"
            )
        self.enter(self.engine, device)
        with torch.no_grad(), pooling_keys(self.pools), no_collection(), self._named():
            results = [self._sample(device, *own) for own in samples]
        return _joined(results)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Events of the engine name this call."""
        before, self.engine.call = self.engine.call, self._title
        try:
            yield
        finally:
            self.engine.call = before

    @property
    def _title(self) -> str:
        return self.name or type(self.module).__name__

    def _sample(
        self, device: torch.device, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], TreeSpec]:
        """The leaves of what one sample gives, and how they hang together."""
        follow = WeightsFollow(device) if self.engine.loads_weights else nullcontext()
        with (
            naming_modules(self.module, self.name),
            follow,
            positions_by_rows(self.module, args, kwargs),
        ):
            made = self.forward(*args, **kwargs)
        leaves, spec = tree_flatten(made, is_leaf=lambda x: isinstance(x, BandedTensor))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, BandedTensor)]
        for i, given in zip(places, self.give([leaves[i] for i in places]), strict=True):
            leaves[i] = given
        return leaves, spec


@contextmanager
def replaced_forward(module: nn.Module, call: StreamedCall) -> Iterator[None]:
    """Call `call` in place of the module's forward while the context lasts."""
    before = module.__dict__.get("forward")
    module.forward = call
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def _joined(results: Sequence[tuple[list[Any], TreeSpec]]) -> Any:
    """The results of all samples as those of one batch."""
    specs = [spec for _, spec in results]
    leaves = [_stacked(parts) for parts in zip(*(each for each, _ in results), strict=True)]
    return tree_unflatten(leaves, specs[0])


def _stacked(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], BandedTensor):
        return BandedTensor.of([part.nodes[0] for part in parts])
    if len(parts) > 1 and isinstance(parts[0], Tensor) and parts[0].ndim:
        return torch.cat(list(parts))
    return parts[0]
