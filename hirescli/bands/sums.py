"""Operations over the rows: means, sums, deviations, and products that contract the rows."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hirescli.bands.record import flatten, handles, infer, name_of, record_local
from hirescli.bands.reductions import Deviation, Reduction, Sum
from hirescli.bands.tensor import Node, module_path, unknown

_T = Tensor


def record_reduction(
    inputs: Node | Sequence[Node], reduction: Reduction, *, name: str, shape: torch.Size,
    dtype: torch.dtype, px_flops: float = 0.0, scratch_bytes: int = 0,
) -> Node:  # fmt: skip
    """A node that folds all rows of its inputs."""
    parents = (inputs,) if isinstance(inputs, Node) else tuple(inputs)
    return Node(
        kind="reduction",
        name=name,
        parents=parents,
        shape=shape,
        dtype=dtype,
        device=parents[0].device,
        reduction=reduction,
        px_flops=px_flops,
        scratch_bytes=scratch_bytes,
        module=module_path(),
    )


@handles(torch.mean, _T.mean, torch.sum, _T.sum)
def mean_or_sum(func: Any, x: Node, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Node:
    """A sum over dimensions; over the rows it is a reduction."""
    dims = _dims(x, dim)
    (meta,) = infer(func, (x, dims, keepdim), kwargs)
    name = name_of(func)
    if x.grid is None or x.grid.dim not in dims:
        grid = x.grid and x.grid.at(_after_reduction(x.grid.dim, dims, keepdim))
        return record_local(
            func, (x, dims, keepdim), kwargs,
            name=name, shape=meta.shape, dtype=meta.dtype, grid=grid,
        )  # fmt: skip
    count = math.prod(x.shape[d] for d in dims) if name == "mean" else 1

    def term(bands: Sequence[Tensor]) -> Tensor:
        return bands[0].sum(dims, keepdim=keepdim, dtype=torch.promote_types(x.dtype, _FLOAT))

    reduction = Sum(term, count, meta.dtype)
    return record_reduction(x, reduction, name=name, shape=meta.shape, dtype=meta.dtype)


_FLOAT = torch.float32


@handles(torch.std, _T.std, torch.var, _T.var)
def deviation(
    func: Any, x: Node, dim: Any = None, *args: Any, keepdim: bool = False,
    correction: float = 1, unbiased: bool | None = None,
) -> Node:  # fmt: skip
    """A deviation over dimensions; over the rows it is a reduction."""
    if isinstance(dim, bool):
        unbiased, dim = dim, None
    if args:
        raise unknown(name_of(func), "with its options by position")
    dims = _dims(x, dim)
    correction = correction if unbiased is None else int(unbiased)
    options: dict[str, Any] = {"keepdim": keepdim, "correction": correction}
    (meta,) = infer(func, (x, dims), options)
    if x.grid is None or x.grid.dim not in dims:
        grid = x.grid and x.grid.at(_after_reduction(x.grid.dim, dims, keepdim))
        return record_local(
            func, (x, dims), options,
            name=name_of(func), shape=meta.shape, dtype=meta.dtype, grid=grid,
        )  # fmt: skip
    reduction = Deviation(
        tuple(dims), keepdim, correction, root=name_of(func) == "std", dtype=meta.dtype
    )
    return record_reduction(x, reduction, name=name_of(func), shape=meta.shape, dtype=meta.dtype)


def _dims(x: Node, dim: Any) -> list[int]:
    ndim = len(x.shape)
    return list(range(ndim)) if dim is None else [int(d) % ndim for d in flatten(dim)]


def _after_reduction(dim: int, dims: Sequence[int], keepdim: bool) -> int:
    return dim if keepdim else dim - sum(d < dim for d in dims)


@handles(torch.matmul, _T.matmul, _T.__matmul__, _T.__rmatmul__, torch.bmm, _T.bmm)
def matmul(func: Any, first: Any, second: Any) -> Node:
    """A product: rows stay, or are contracted, which is a reduction."""
    if func is _T.__rmatmul__:
        first, second = second, first
    (meta,) = infer(torch.matmul, (first, second), {})
    rows, columns = _row_place(first), _row_place(second)
    if rows == -1 and columns == -2:
        return _contraction(first, second, meta)
    grid_of: Node | None = None
    if rows == -2 and columns is None:
        grid_of = first
    elif columns == -1 and rows is None:
        grid_of = second
    elif rows == columns and rows is not None and rows < -2:  # rows count the matrices
        grid_of = first
    elif rows is not None or columns is not None:
        raise unknown("matmul", "compares rows with rows; use scaled_dot_product_attention")
    grid, px, anchor = None, 1, False
    if grid_of is not None:
        assert grid_of.grid is not None
        grid = grid_of.grid.at(grid_of.grid.dim + meta.ndim - len(grid_of.shape))
        px, anchor = grid.rows * grid.width, True
    return record_local(
        torch.matmul, (first, second), {},
        name="matmul", shape=meta.shape, dtype=meta.dtype, grid=grid, anchor=anchor,
        px_flops=2.0 * first.shape[-1] * meta.numel() / px,
    )  # fmt: skip


def _row_place(operand: Any) -> int | None:
    """The dimension of the rows, counted from the end."""
    if isinstance(operand, Node) and operand.grid is not None:
        return operand.grid.dim - len(operand.shape)
    return None


def _contraction(first: Node, second: Node, meta: Tensor) -> Node:
    assert first.grid is not None

    def term(bands: Sequence[Tensor]) -> Tensor:
        return torch.matmul(bands[0], bands[1])

    px = first.grid.rows * first.grid.width
    return record_reduction(
        (first, second), Sum(term, 1, meta.dtype),
        name="matmul", shape=meta.shape, dtype=meta.dtype,
        px_flops=2.0 * first.shape[-1] * meta.numel() / px,
    )  # fmt: skip


@handles(torch.einsum)
def einsum(func: Any, equation: str, *operands: Any) -> Node:
    """A product by labels: the rows' label stays, or is summed over, which is a reduction."""
    tensors = flatten(operands)
    (meta,) = infer(lambda *t: torch.einsum(equation, *t), tensors, {})
    sources, _, target = _without_dots(equation, tensors).partition("->")
    labels = {
        source[t.grid.dim]
        for source, t in zip(sources.split(","), tensors, strict=True)
        if isinstance(t, Node) and t.grid is not None
    }
    if not target or len(labels) > 1:
        raise unknown(f'einsum "{equation}"')
    banded = [t for t in tensors if isinstance(t, Node) and t.grid is not None]
    if labels and (label := labels.pop()) not in target:
        if len(banded) != len(tensors):
            raise unknown(f'einsum "{equation}"', "sums rows of whole tensors")
        call: Callable[[Sequence[Tensor]], Tensor] = lambda bands: torch.einsum(equation, *bands)  # noqa: E731
        return record_reduction(
            banded, Sum(call, 1, meta.dtype), name="einsum", shape=meta.shape, dtype=meta.dtype
        )
    grid = banded[0].grid.at(target.index(label)) if banded and banded[0].grid else None
    return record_local(
        lambda *t: torch.einsum(equation, *t), tensors, {},
        name="einsum", shape=meta.shape, dtype=meta.dtype, grid=grid, anchor=grid is not None,
    )  # fmt: skip


def _without_dots(equation: str, operands: Sequence[Any]) -> str:
    """The equation with a label for each dimension that "..." stands for."""
    sources, arrow, target = equation.replace(" ", "").partition("->")
    hidden = [
        (source, len(operand.shape) - len(source.replace("...", "")))
        for source, operand in zip(sources.split(","), operands, strict=True)
    ]
    most = max(count for _, count in hidden)
    free = [label for label in string.ascii_uppercase if label not in equation][:most]
    written = [source.replace("...", "".join(free[most - n :])) for source, n in hidden]
    return ",".join(written) + arrow + target.replace("...", "".join(free))
