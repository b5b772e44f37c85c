"""Operations that only arrange numbers: their rows stay whole and in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.bands.patches import patched, patches, unpatched, unpatches
from hirescli.bands.record import flatten, handles, infer, name_of, record_local
from hirescli.bands.tensor import Node, unknown
from hirescli.planning.trace import Stretch, Window

_T = Tensor


@handles(
    _T.reshape, _T.view, torch.reshape, _T.flatten, torch.flatten, _T.unflatten, torch.unflatten,
    _T.unsqueeze, torch.unsqueeze, _T.squeeze, torch.squeeze,
)  # fmt: skip
def reshape(func: Any, x: Node, *args: Any, **kwargs: Any) -> Node:
    """The same numbers in the same order in another shape."""
    if func is _T.view and args and isinstance(args[0], torch.dtype):
        raise unknown("view as another dtype")
    (meta,) = infer(func, (x, *args), kwargs)
    if x.grid is None:
        return record_local(
            func, (x, *args), kwargs,
            name="reshape", shape=meta.shape, dtype=x.dtype, grid=None,
        )  # fmt: skip
    if patches(x, meta.shape):
        return patched(x, meta)
    if unpatches(x, meta.shape):
        return unpatched(x, meta)
    dim = _row_dim(x, meta.shape)
    if dim is None:
        raise unknown(name_of(func), f"to {tuple(meta.shape)} does not keep rows together")
    shape = list(meta.shape)
    per_row = shape[dim] // x.grid.rows

    def kernel(bands: list[Any], span: Any) -> Tensor:
        band_shape = list(shape)
        band_shape[dim] = span.rows * per_row
        band: Tensor = bands[0].reshape(band_shape)
        return band

    return record_local(
        None, (x,), {},
        name="reshape", shape=meta.shape, dtype=x.dtype, grid=x.grid.at(dim), kernel=kernel,
    )  # fmt: skip


def _row_dim(x: Node, shape: Sequence[int]) -> int | None:
    """The dimension of `shape` in which the rows of x stay outermost.

    Before it lie as many numbers as before, and it counts whole rows.
    """
    assert x.grid is not None
    before, rows = math.prod(x.shape[: x.grid.dim]), x.grid.rows
    fits = [
        dim
        for dim in range(len(shape))
        if math.prod(shape[:dim]) == before and shape[dim] % rows == 0 and shape[dim]
    ]
    if x.grid.dim in fits:
        return x.grid.dim
    return fits[-1] if fits else None


@handles(_T.permute, torch.permute)
def permute(func: Any, x: Node, *dims: Any, **kwargs: Any) -> Node:
    """Dimensions in another order."""
    order = [int(d) % len(x.shape) for d in flatten(kwargs.get("dims", dims))]
    return _permuted(x, order)


@handles(_T.transpose, torch.transpose, _T.swapaxes, torch.swapaxes)
def transpose(func: Any, x: Node, dim0: int, dim1: int) -> Node:
    """Two dimensions exchanged."""
    order = list(range(len(x.shape)))
    a, b = dim0 % len(order), dim1 % len(order)
    order[a], order[b] = b, a
    return _permuted(x, order)


@handles(_T.t, torch.t)
def matrix_transpose(func: Any, x: Node) -> Node:
    """The two dimensions of a matrix exchanged."""
    return _permuted(x, [1, 0])


@handles(_T.mT.__get__, _T.T.__get__)  # type: ignore[attr-defined]
def transposed_property(func: Any, x: Node, *_: Any) -> Node:
    """``x.mT``, or ``x.T`` of a matrix."""
    order = list(range(len(x.shape)))
    return _permuted(x, [*order[:-2], order[-1], order[-2]])


@handles(_T.movedim, torch.movedim)
def movedim(func: Any, x: Node, source: int, destination: int) -> Node:
    """One dimension in another place."""
    order = [d for d in range(len(x.shape)) if d != source % len(x.shape)]
    order.insert(destination % len(x.shape), source % len(x.shape))
    return _permuted(x, order)


def _permuted(x: Node, order: list[int]) -> Node:
    shape = torch.Size(x.shape[d] for d in order)
    grid = None if x.grid is None else x.grid.at(order.index(x.grid.dim))
    return record_local(
        _T.permute, (x, order), {}, name="permute", shape=shape, dtype=x.dtype, grid=grid
    )


@handles(torch.cat, torch.concat)
def cat(func: Any, tensors: Sequence[Any], dim: int = 0, **kwargs: Any) -> Any:
    """Values side by side, along a dimension without rows; rows only beside what has none."""
    (meta,) = infer(func, (list(tensors), dim), kwargs)
    dim %= len(meta.shape)
    grids = [t.grid for t in tensors if isinstance(t, Node) and t.grid is not None]
    grid = grids[0] if grids else None
    if grid is not None:
        if dim == grid.dim:
            from hirescli.bands.joint import joined  # which is made of these handlers

            return joined(tensors, dim)
        if any((g.rows, g.dim) != (grid.rows, grid.dim) for g in grids):
            raise unknown("cat", f"joins rows that do not agree: {grids}")
    return record_local(
        func, (list(tensors), dim), {},
        name="cat", shape=meta.shape, dtype=meta.dtype, grid=grid, cuts=True,
    )  # fmt: skip


@handles(torch.chunk, _T.chunk, torch.split, _T.split, torch.unbind, _T.unbind,
         torch.tensor_split, torch.split_with_sizes, _T.split_with_sizes)  # fmt: skip
def split(func: Any, x: Node, *args: Any, **kwargs: Any) -> tuple[Node, ...]:
    """Parts along a dimension without rows."""
    metas = infer(func, (x, *args), kwargs)
    unbinds = name_of(func) == "unbind"
    place = 0 if unbinds else 1
    dim = kwargs.get("dim", args[place] if len(args) > place else 0) % len(x.shape)
    grid = x.grid
    if grid is not None:
        if dim == grid.dim:
            raise unknown(name_of(func), "cuts between rows")
        if unbinds and dim < grid.dim:
            grid = grid.at(grid.dim - 1)

    def part(index: int, meta: Tensor) -> Node:
        return record_local(
            lambda t: func(t, *args, **kwargs)[index], (x,), {},
            name=name_of(func), shape=meta.shape, dtype=meta.dtype, grid=grid,
        )  # fmt: skip

    return tuple(part(i, meta) for i, meta in enumerate(metas))


@handles(_T.__getitem__)
def getitem(func: Any, x: Node, index: Any) -> Node:
    """A selection that takes all rows."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(p, (Tensor, Node, list)) for p in parts):
        raise unknown("indexing with a tensor")
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        missing = len(x.shape) - sum(p is not None for p in parts) + 1
        parts[place : place + 1] = [slice(None)] * missing
    (meta,) = infer(func, (x, tuple(parts)), {})
    grid = x.grid
    if grid is not None:
        grid = grid.at(_kept_dim(parts, grid.dim, x.shape[grid.dim]))
    return record_local(
        func, (x, tuple(parts)), {}, name="select", shape=meta.shape, dtype=meta.dtype, grid=grid
    )


def _kept_dim(parts: Sequence[Any], dim: int, size: int) -> int:
    """Where dimension `dim` lies after a selection, which must take all of it."""
    source = target = 0
    for part in parts:
        if part is None:
            target += 1
            continue
        if source == dim:
            if not isinstance(part, slice) or part.indices(size) != (0, size, 1):
                raise unknown("indexing", "takes a part of the rows")
            return target
        source += 1
        target += isinstance(part, slice)
    return target + dim - source


@handles(torch.stack)
def stack(func: Any, tensors: Sequence[Any], dim: int = 0) -> Node:
    """Values side by side along a new dimension."""
    (meta,) = infer(func, (list(tensors), dim), {})
    dim %= len(meta.shape)
    grids = [t.grid for t in tensors if isinstance(t, Node) and t.grid is not None]
    grid = grids[0] if grids else None
    if grid is not None:
        grid = grid.at(grid.dim + (dim <= grid.dim))
    return record_local(
        func, (list(tensors), dim), {},
        name="stack", shape=meta.shape, dtype=meta.dtype, grid=grid, cuts=True,
    )  # fmt: skip


@handles(_T.expand, _T.repeat, _T.expand_as)
def expand(func: Any, x: Node, *sizes: Any, **kwargs: Any) -> Node:
    """More of the same along dimensions without rows."""
    (meta,) = infer(func, (x, *sizes), kwargs)
    grid = x.grid
    if grid is None:
        return record_local(
            func, (x, *sizes), kwargs,
            name=name_of(func), shape=meta.shape, dtype=x.dtype, grid=None,
        )  # fmt: skip
    grid = grid.at(grid.dim + len(meta.shape) - len(x.shape))
    if meta.shape[grid.dim] != x.shape[x.grid.dim]:  # type: ignore[union-attr]
        raise unknown(name_of(func), "repeats rows")
    factors = list(meta.shape)
    for k in range(1, len(x.shape) + 1):
        factors[-k] //= x.shape[-k]
    return record_local(
        _T.repeat, (x, *factors), {},
        name=name_of(func), shape=meta.shape, dtype=x.dtype, grid=grid,
    )  # fmt: skip


@handles(torch.repeat_interleave, _T.repeat_interleave)
def repeat_interleave(func: Any, x: Node, repeats: int, dim: int, **kwargs: Any) -> Node:
    """Each number several times, along a dimension without rows."""
    (meta,) = infer(func, (x, repeats, dim), {})
    if not isinstance(repeats, int) or (x.grid is not None and dim % len(x.shape) == x.grid.dim):
        raise unknown("repeat_interleave", "repeats rows")
    return record_local(
        func, (x, repeats, dim), {},
        name="repeat_interleave", shape=meta.shape, dtype=x.dtype, grid=x.grid,
    )  # fmt: skip


@handles(torch.outer, _T.outer)
def outer(func: Any, x: Node, columns: Tensor) -> Node:
    """Each number of rows (N,) times all of a whole tensor."""
    if not isinstance(x, Node) or not isinstance(columns, Tensor):
        raise unknown("outer", "of rows and rows")
    (meta,) = infer(func, (x, columns), {})
    return record_local(
        func, (x, columns), {}, name="outer", shape=meta.shape, dtype=meta.dtype, grid=x.grid
    )


@handles(F.pad)
def pad(
    func: Any, x: Node, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Node:
    """Zeros around; of another mode or value only beside the rows."""
    (meta,) = infer(func, (x, list(pad), mode, value), {})
    pads = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]  # from the last dimension on
    from_last = -1 if x.grid is None else len(x.shape) - 1 - x.grid.dim
    above, below = pads[from_last] if 0 <= from_last < len(pads) else (0, 0)
    if x.grid is None or not (above or below):
        return record_local(
            func, (x, list(pad), mode, value), {},
            name="pad", shape=meta.shape, dtype=x.dtype, grid=_widened(x, meta, pads),
            width_reach=_pad_reach(x, pads),
        )  # fmt: skip
    if mode != "constant" or value or x.per_row != 1 or above < 0 or below < 0:
        raise unknown("pad", f"of mode {mode} and value {value} above or below the rows")
    beside = list(pad)
    beside[2 * from_last : 2 * from_last + 2] = [0, 0]
    grid = _widened(x, meta, pads)
    assert grid is not None
    grid = type(grid)(x.grid.rows + above + below, grid.width, grid.level, grid.dim)
    return record_local(
        None, (x,), {},
        name="pad", shape=meta.shape, dtype=x.dtype, grid=grid,
        kernel=lambda bands, _: F.pad(bands[0], beside),
        reach=Window(1, 1, above, below), width_reach=_pad_reach(x, pads),
    )  # fmt: skip


def _pad_reach(x: Node, pads: list[tuple[int, int]]) -> Window | None:
    if x.grid is None or len(x.shape) != 4 or pads[0] == (0, 0):
        return None
    return Window(1, 1, *pads[0])


def _widened(x: Node, meta: Tensor, pads: list[tuple[int, int]]) -> Any:
    if x.grid is None or _pad_reach(x, pads) is None:
        return x.grid
    return type(x.grid)(x.grid.rows, x.grid.width + sum(pads[0]), x.grid.level, x.grid.dim)


@handles(torch.pixel_shuffle)
def pixel_shuffle(func: Any, x: Node, factor: int) -> Node:
    """Groups of factor² channels become factor rows of factor columns."""
    (meta,) = infer(func, (x, factor), {})
    grid = x.grid
    if grid is None or grid.dim != len(x.shape) - 2 or x.per_row != 1:
        raise unknown("pixel_shuffle", "needs an image (B, C, H, W)")
    made = type(grid)(grid.rows * factor, grid.width * factor, grid.level * factor, grid.dim)

    def kernel(bands: list[Any], span: Any) -> Tensor:
        rows = _shuffled(bands[0], factor)
        return rows.narrow(-2, span.lo - factor * span.first, span.rows)

    return record_local(
        None, (x,), {},
        name="pixel_shuffle", shape=meta.shape, dtype=x.dtype, grid=made, kernel=kernel,
        reach=Stretch(factor), width_reach=Stretch(factor),
    )  # fmt: skip


def _shuffled(band: Tensor, factor: int) -> Tensor:
    """Pixel shuffle that keeps channels-last bands so, in one copy."""
    if not band.is_contiguous(memory_format=torch.channels_last):
        return torch.pixel_shuffle(band, factor)
    groups: Tensor = band.permute(0, 2, 3, 1).unflatten(
        3, (-1, factor, factor)
    )  # (1, h, w, C, f, f)
    merged: Tensor = groups.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)
    return merged.permute(0, 3, 1, 2)


@handles(torch.pixel_unshuffle)
def pixel_unshuffle(func: Any, x: Node, factor: int) -> Node:
    """Squares of factor² pixels become channels."""
    (meta,) = infer(func, (x, factor), {})
    grid = x.grid
    if grid is None or grid.dim != len(x.shape) - 2 or x.per_row != 1:
        raise unknown("pixel_unshuffle", "needs an image (B, C, H, W)")
    made = type(grid)(grid.rows // factor, grid.width // factor, grid.level / factor, grid.dim)
    return record_local(
        torch.pixel_unshuffle, (x, factor), {},
        name="pixel_unshuffle", shape=meta.shape, dtype=x.dtype, grid=made,
        reach=Window(factor, factor), width_reach=Window(factor, factor),
    )  # fmt: skip
