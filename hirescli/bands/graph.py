"""The graph of what is wanted: its nodes in order, and the trace that is scheduled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from hirescli.bands.tensor import Node, UnknownOperationError
from hirescli.planning.trace import CONSTANT, Op, SizedOp, Trace


@dataclass(frozen=True)
class Graph:
    """Nodes that lead to outputs, each behind those it reads.

    Attributes:
        nodes: In the order they were recorded.
        outputs: Indices of the nodes that are wanted.
        trace: The same without torch.
        rows, width: Of level 1.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    trace: Trace
    rows: int
    width: int

    @classmethod
    def of(cls, outputs: Sequence[Node], names: dict[int, str] | None = None) -> Graph:
        """The graph of these outputs.

        Args:
            outputs: Nodes that are wanted.
            names: Of weights, by the id of the parameter.
        """
        nodes = _ancestors(outputs)
        index = {id(node): i for i, node in enumerate(nodes)}
        weights = _Weights(names or {})
        ops = tuple(_op(node, index, weights) for node in nodes)
        trace = Trace(ops, tuple(index[id(node)] for node in outputs), weights.bytes)
        grid = _level_one(nodes)
        return cls(tuple(nodes), trace.outputs, trace, *grid)

    def check(self, sized: Sequence[SizedOp]) -> None:
        """Check that the trace at this size is what was recorded.

        Raises:
            UnknownOperationError: If rows follow from the input otherwise than a trace can say.
        """
        for node, op in zip(self.nodes, sized, strict=True):
            if node.grid is not None and (node.grid.rows, node.grid.width) != (op.rows, op.width):
                raise UnknownOperationError(
                    f"{node.name} in {node.module} has {node.grid.rows}x{node.grid.width} "
                    f"pixels where {op.rows}x{op.width} follow from its input; run this "
                    "component without hirescli.stream"
                )


def parameter_names(*components: nn.Module) -> dict[int, str]:
    """Names of all parameters and buffers, by id; those after the first begin with a number."""
    return {
        id(tensor): f"{number}.{name}" if number else name
        for number, component in enumerate(components)
        for name, tensor in (*component.named_parameters(), *component.named_buffers())
    }


class _Weights:
    """Names and sizes of the weights, and of other whole tensors, that operations read."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names: dict[object, str] = {key: name for key, name in names.items()}  # noqa: C416
        self._constants = 0
        self.bytes: dict[str, int] = {}

    def name(self, tensor: Tensor) -> str:
        name = self._names.get(id(tensor))
        if name is None:  # was computed before any rows were, such as the keys of a text
            # Views of the same numbers take memory once.
            same = tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()
            name = self._names.setdefault(same, f"{CONSTANT}{self._constants}")
            self._constants += name == f"{CONSTANT}{self._constants}"
        self.bytes[name] = tensor.numel() * tensor.element_size()
        return name


def _ancestors(outputs: Sequence[Node]) -> list[Node]:
    found: dict[int, Node] = {}
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            waiting.extend(node.parents)
    return sorted(found.values(), key=lambda node: node.serial)


def _level_one(nodes: Sequence[Node]) -> tuple[int, int]:
    for node in nodes:
        if node.kind == "input" and node.grid is not None and node.grid.level == 1:
            return node.grid.rows, node.grid.width
    raise AssertionError("a graph has an input of level 1")


def _op(node: Node, index: dict[int, int], weights: _Weights) -> Op:
    px = 0.0
    if node.grid is not None:
        px = node.shape.numel() / (node.grid.rows * node.grid.width)
    return Op(
        kind=node.kind,
        name=node.name,
        inputs=tuple(index[id(parent)] for parent in node.parents),
        reach=node.reach,
        width_reach=node.width_reach,
        level=node.grid.level if node.kind == "input" and node.grid else Op.level,
        px=px,
        itemsize=node.dtype.itemsize,
        px_flops=node.px_flops,
        px_key_flops=node.px_key_flops,
        state_numbers=0 if node.grid or node.kind == "gather" else node.shape.numel(),
        anchor=node.anchor,
        weights=tuple(weights.name(tensor) for tensor in node.weights),
        module=node.module,
        scratch_bytes=node.scratch_bytes,
        px_scratch_bytes=node.px_scratch_bytes,
    )
