"""Recording: tensors that stand for whole ones, hold nothing, and leave a graph.

Shapes: a *node* stands for one sample, (1, ...). One of its dimensions holds the rows, as many
elements for each row as the layout asks: one in (1, C, H, W), W in tokens (1, H*W, C). A
`BandedTensor` is what modules see: one node for each sample of a batch, so that the samples,
and with them the two halves of guidance, can be computed one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hirescli.errors import RequestError
from hirescli.planning.trace import Kind, Reach

if TYPE_CHECKING:
    from hirescli.bands.reductions import Reduction

_serial = itertools.count()


class UnknownOperationError(RequestError):
    """An operation that the engine cannot compute in bands."""


@dataclass(frozen=True)
class Grid:
    """Rows and columns of a value.

    Attributes:
        rows, width: Of the value.
        level: Its rows for each row of the component's input.
        dim: The dimension that holds the rows.
    """

    rows: int
    width: int
    level: Fraction
    dim: int

    def at(self, dim: int) -> Grid:
        """The same rows in another dimension."""
        return Grid(self.rows, self.width, self.level, dim)


@dataclass(frozen=True)
class Span:
    """Which rows a kernel computes.

    Attributes:
        lo, hi: Rows of the output.
        first: First row that is handed in of the banded inputs.
        native: Whether the kernel shall pad rows by itself, above and below: the whole height
            is handed in. Otherwise rows of zeros are among those handed in.
        bring: Gives a weight where it can be computed with.
    """

    lo: int
    hi: int
    first: int = 0
    native: bool = False
    bring: Callable[[Tensor], Tensor] = lambda tensor: tensor

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.hi - self.lo


Kernel = Callable[[list[Any], Span], Tensor]


@dataclass(eq=False)
class Node:
    """One recorded operation on one sample.

    Attributes:
        kind, name, reach, width_reach, px_flops, px_key_flops, anchor, scratch_bytes,
            px_scratch_bytes: As in `trace.Op`.
        parents: What it reads, in the order its kernel gets it.
        kernel: Computes a band, or, of a "resident" node, the whole.
        shape: Of the whole value.
        dtype: Of its numbers.
        grid: None for what has no rows.
        reduction: How a "reduction" folds bands.
        weights: Parameters and other whole tensors that the kernel reads.
        module: Where it was called.
        source: Of an "input": gives rows lo to hi. Set once a value has been computed.
        value: Of a state that has been computed.
    """

    kind: Kind
    name: str
    parents: tuple[Node, ...]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    grid: Grid | None = None
    kernel: Kernel | None = None
    reach: Reach = None
    width_reach: Reach = None
    px_flops: float = 0.0
    px_key_flops: float = 0.0
    anchor: bool = False
    scratch_bytes: int = 0
    px_scratch_bytes: float = 0.0
    reduction: Reduction | None = None
    weights: tuple[Tensor, ...] = ()
    module: str = ""
    source: Callable[[int, int], Tensor] | None = None
    value: Tensor | None = None
    native_zeros: int = 0  # rows of zeros each side that the kernel can pad by itself
    serial: int = field(default_factory=lambda: next(_serial))

    @property
    def per_row(self) -> int:
        """Elements of the row dimension that make one row."""
        assert self.grid is not None
        return self.shape[self.grid.dim] // self.grid.rows

    def band_shape(self, rows: int) -> list[int]:
        """The shape of a band of so many rows."""
        assert self.grid is not None
        shape = list(self.shape)
        shape[self.grid.dim] = rows * self.per_row
        return shape


class BandedTensor(Tensor):
    """A tensor that holds nothing: one node for each sample of its batch.

    Calling an operation with it records the operation. Its shape, dtype and device are those of
    the tensor it stands for.
    """

    nodes: tuple[Node, ...]

    @staticmethod
    def of(nodes: Sequence[Node]) -> BandedTensor:
        """The tensor of these samples, all of one shape."""
        first = nodes[0]
        shape = first.shape
        if len(nodes) > 1:
            shape = torch.Size((shape[0] * len(nodes), *shape[1:]))
        made: BandedTensor = Tensor._make_wrapper_subclass(
            BandedTensor, shape, dtype=first.dtype, device=first.device
        )
        made.nodes = tuple(nodes)
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        from hirescli.bands.ops import dispatch

        return dispatch(func, tuple(args), kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise unknown(str(func))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        node = self.nodes[0]
        return f"BandedTensor({tuple(self.shape)}, {node.dtype}, {node.name}, {node.grid})"


def unknown(name: str, why: str = "cannot be computed in bands of rows") -> UnknownOperationError:
    """The error of an operation, with the module that called it."""
    return UnknownOperationError(
        f"{name} in {module_path()} {why}; run this component without hirescli.stream"
    )


# Which module is being called

_modules: list[str] = []
OUTSIDE = "(outside)"


def module_path() -> str:
    """Name of the module whose forward is recorded, `OUTSIDE` if there is none."""
    return _modules[-1] if _modules else OUTSIDE


@contextmanager
def naming_modules(component: nn.Module, prefix: str = "") -> Iterator[None]:
    """Know the names of the component's modules while it is recorded.

    Args:
        component: Whose modules are named.
        prefix: Its own name in what it is a part of.
    """
    names = {
        id(module): ".".join(part for part in (prefix, name) if part) or type(module).__name__
        for name, module in component.named_modules()
    }

    def enter(module: nn.Module, _: object) -> None:
        _modules.append(names.get(id(module), type(module).__name__))

    def leave(*_: object) -> None:
        _modules.pop()

    before = nn.modules.module.register_module_forward_pre_hook(enter)
    after = nn.modules.module.register_module_forward_hook(leave, always_call=True)
    depth = len(_modules)
    try:
        yield
    finally:
        before.remove()
        after.remove()
        del _modules[depth:]
