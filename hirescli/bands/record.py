"""How operations are recorded: the table of handlers, and what handlers make nodes with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hirescli.bands.tensor import Grid, Kernel, Node, Span, module_path, unknown

Handler = Callable[..., Any]
HANDLERS: dict[Any, Handler] = {}


def handles(*funcs: Any) -> Callable[[Handler], Handler]:
    """Register a handler for torch functions; it gets (func, *args, **kwargs)."""

    def register(handler: Handler) -> Handler:
        for func in funcs:
            HANDLERS[func] = handler
        return handler

    return register


def name_of(func: Any) -> str:
    """The name of a torch function, for people."""
    name: str = getattr(func, "__name__", str(func))
    return f"{getattr(func, '__qualname__', name)}" if name == "__get__" else name


def record_local(
    func: Callable[..., Tensor] | None,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    name: str,
    shape: torch.Size,
    dtype: torch.dtype,
    grid: Grid | None,
    kernel: Kernel | None = None,
    cuts: bool = False,
    **known: Any,
) -> Node:
    """A node that calls `func`, or `kernel`, on bands of its parents.

    With `cuts`, whole tensors among the arguments broadcast with the result, and those that
    vary along the rows are cut to the band.
    """
    flat = flatten((args, kwargs))
    parents = tuple(arg for arg in flat if isinstance(arg, Node))
    known.setdefault("weights", tuple(arg for arg in flat if isinstance(arg, Tensor)))
    if kernel is None:
        assert func is not None
        kernel = _call(func, args, kwargs, grid if cuts else None, len(shape), parents[0].device)
    return Node(
        kind="resident" if grid is None else "local",
        name=name,
        parents=parents,
        shape=shape,
        dtype=dtype,
        device=parents[0].device,
        grid=grid,
        kernel=kernel,
        module=module_path(),
        **known,
    )


def flatten(value: Any) -> list[Any]:
    """The leaves of nested lists, tuples and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [each for part in value for each in flatten(part)]
    return [value]


def _call(
    func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any], grid: Grid | None,
    ndim: int, device: torch.device,
) -> Kernel:  # fmt: skip
    """A kernel that fills bands into the arguments, and cuts whole tensors that have rows."""
    places: list[Callable[[list[Any], Span], Any]] = []
    count = 0

    def place(value: Any) -> Callable[[list[Any], Span], Any]:
        nonlocal count
        if isinstance(value, Node):
            index = count
            count += 1
            return lambda bands, _: bands[index]
        if isinstance(value, (list, tuple)) and any(isinstance(v, (Node, Tensor)) for v in value):
            parts = [place(v) for v in value]
            return lambda bands, span: [part(bands, span) for part in parts]
        if isinstance(value, Tensor):
            return _cut(value, grid, ndim, device)
        return lambda *_: value

    places = [place(value) for value in args]
    named = {key: place(value) for key, value in kwargs.items()}
    if not named:
        return lambda bands, span: func(*(p(bands, span) for p in places))
    return lambda bands, span: func(
        *(p(bands, span) for p in places), **{key: p(bands, span) for key, p in named.items()}
    )


def _cut(
    whole: Tensor, grid: Grid | None, ndim: int, device: torch.device
) -> Callable[[list[Any], Span], Tensor]:
    """The rows of a whole tensor that belong to a band, if it varies along them."""
    if grid is not None:
        dim = grid.dim - (ndim - whole.ndim)
        if dim >= 0 and whole.shape[dim] != 1:
            per_row = whole.shape[dim] // grid.rows
            if per_row * grid.rows != whole.shape[dim]:
                raise unknown("an operation", f"meets a tensor of shape {tuple(whole.shape)}")
            return lambda _, span: whole.narrow(dim, span.lo * per_row, span.rows * per_row).to(
                device
            )
    return lambda _, span: span.bring(whole)


def broadcast_grid(name: str, nodes: Sequence[Node], shape: torch.Size) -> Grid | None:
    """Where the rows of an elementwise result lie; None if no operand has rows."""
    found: Grid | None = None
    for node in nodes:
        if node.grid is None:
            continue
        grid = node.grid.at(node.grid.dim + len(shape) - len(node.shape))
        if found is None:
            found = grid
        elif (found.rows, found.dim) != (grid.rows, grid.dim):
            raise unknown(name, f"joins rows that do not agree: {found} and {grid}")
    return found


# What an operation makes of shapes and dtypes


def infer(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """What `func` returns, as meta tensors in a list; nodes and tensors stand for themselves."""
    try:
        key = (func, _described(args), _described(kwargs))
        known = _INFERRED.get(key)
    except TypeError:  # an argument that cannot be a key
        return _infer_now(func, args, kwargs)
    if known is None:
        if len(_INFERRED) >= _MOST_INFERRED:
            _INFERRED.clear()
        known = _INFERRED[key] = _infer_now(func, args, kwargs)
    return known


_INFERRED: dict[Any, list[Any]] = {}
_MOST_INFERRED = 8192  # a denoiser asks for a few hundred, every time it is called


def _described(value: Any) -> Any:
    """What of an argument decides about shapes and dtypes, as a key."""
    if isinstance(value, (Node, Tensor)):
        return (Tensor, value.shape, value.dtype)
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_described, value))
    if isinstance(value, dict):
        return (dict, *((key, _described(each)) for key, each in value.items()))
    return (type(value), value)


def _infer_now(func: Any, args: Any, kwargs: Any) -> list[Any]:
    def blank(value: Any) -> Any:
        if isinstance(value, (Node, Tensor)):
            return torch.empty(tuple(value.shape), dtype=value.dtype, device="meta")
        return value

    args, kwargs = tree_map(blank, (tuple(args), kwargs))
    with torch.no_grad():
        made = func(*args, **kwargs)
    return list(made) if isinstance(made, (tuple, list)) else [made]
