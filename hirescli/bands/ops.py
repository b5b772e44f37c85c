"""What happens when a module calls an operation with a banded tensor.

Handlers get nodes in place of banded tensors and return nodes. An operation that is in no table
is refused by name; nothing ever builds the whole tensor instead.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Imported for the handlers that they register.
from hirescli.bands import (  # noqa: F401
    attention,
    elementwise,
    joint_attention,
    layers,
    sums,
    views,
)
from hirescli.bands.joint import is_joint, record_parts
from hirescli.bands.record import HANDLERS, name_of
from hirescli.bands.tensor import BandedTensor, unknown

_T = Tensor
_ABOUT = {  # say something about a tensor without reading it
    getattr(getattr(_T, name), "__get__", getattr(_T, name))
    for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda",
                 "is_meta", "is_mps", "is_xpu", "is_sparse", "is_quantized", "is_nested", "names",
                 "grad_fn", "grad", "is_leaf", "itemsize", "nbytes")
    if hasattr(_T, name)
} | {
    _T.size, _T.dim, _T.numel, _T.nelement, _T.element_size, _T.is_floating_point, _T.is_complex,
    _T.ndimension, _T.is_contiguous, _T.get_device, _T.__len__, torch.is_floating_point,
    torch.is_complex, torch.numel, _T.type, _T.is_inference, torch.is_inference,
}  # fmt: skip


def dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record a call of `func`; what it returns for banded tensors.

    Raises:
        UnknownOperationError: If the engine does not know `func`.
    """
    if func in _ABOUT:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    if func in IN_PLACE:
        result = dispatch(IN_PLACE[func], args, kwargs)
        args[0].nodes = result.nodes
        return args[0]
    if kwargs.get("inplace"):
        kwargs = {**kwargs, "inplace": False}
        result = dispatch(func, args, kwargs)
        args[0].nodes = result.nodes
        return result
    if func not in HANDLERS:
        raise unknown(name_of(func))
    if "axis" in kwargs:  # numpy's name, which torch takes too
        kwargs = {("dim" if key == "axis" else key): value for key, value in kwargs.items()}
    samples = max(len(t.nodes) for t in _banded((args, kwargs)))
    if func in ON_SAMPLES:
        made = ON_SAMPLES[func](*args, **kwargs)
        if made is not NotImplemented:
            return made
    results = [
        _recorded(func, _sample(args, b, samples), _sample(kwargs, b, samples))
        for b in range(samples)
    ]
    return _wrapped(results)


def _recorded(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if is_joint(args, kwargs):
        return record_parts(func, args, kwargs)
    return HANDLERS[func](func, *args, **kwargs)


def _banded(values: Any) -> list[BandedTensor]:
    if isinstance(values, BandedTensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return [found for value in values for found in _banded(value)]
    return []


def _sample(value: Any, index: int, samples: int) -> Any:
    """The arguments of one sample: its node, and its part of tensors that have all samples."""
    if isinstance(value, BandedTensor):
        return value.nodes[index if len(value.nodes) > 1 else 0]
    if isinstance(value, Tensor):
        own = samples > 1 and value.ndim > 1 and value.shape[0] == samples
        return value[index : index + 1] if own else value
    if isinstance(value, dict):
        return {key: _sample(each, index, samples) for key, each in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return type(value)(_sample(each, index, samples) for each in value)
    return value


def _wrapped(results: list[Any]) -> Any:
    if isinstance(results[0], (list, tuple)):
        return type(results[0])(
            _wrapped([each[i] for each in results]) for i in range(len(results[0]))
        )
    if isinstance(results[0], Tensor):  # the text of a sequence, before a picture told it anything
        return torch.cat(results) if len(results) > 1 else results[0]
    return BandedTensor.of(results)


# Whole samples: cut from a batch and put together to one


def _cat_samples(tensors: Sequence[Any], dim: int = 0) -> Any:
    first = next(t for t in tensors if isinstance(t, BandedTensor))
    grid = first.nodes[0].grid
    if dim % first.ndim or grid is None or grid.dim == 0:  # positions count rows there
        return NotImplemented
    if not all(isinstance(t, BandedTensor) for t in tensors):
        raise unknown("cat", "joins samples of which some are whole tensors")
    return BandedTensor.of([node for t in tensors for node in t.nodes])


def _chunk_samples(x: BandedTensor, chunks: int, dim: int = 0) -> Any:
    return _split_samples(x, -(-len(x.nodes) // chunks), dim)


def _split_samples(x: BandedTensor, size: int, dim: int = 0) -> Any:
    if dim % x.ndim or not isinstance(size, int):
        return NotImplemented
    return tuple(BandedTensor.of(x.nodes[i : i + size]) for i in range(0, len(x.nodes), size))


def _get_samples(x: BandedTensor, index: Any) -> Any:
    first, *rest = index if isinstance(index, tuple) else (index,)
    if not isinstance(first, slice) or any(r != slice(None) for r in rest):
        return NotImplemented
    if first == slice(None):
        return x
    return BandedTensor.of(x.nodes[first])


ON_SAMPLES: dict[Any, Callable[..., Any]] = {
    torch.cat: _cat_samples,
    torch.concat: _cat_samples,
    torch.chunk: _chunk_samples,
    _T.chunk: _chunk_samples,
    torch.split: _split_samples,
    _T.split: _split_samples,
    _T.__getitem__: _get_samples,
}


def _in_place() -> dict[Any, Any]:
    found: dict[Any, Any] = {
        _T.__iadd__: _T.__add__, _T.__isub__: _T.__sub__, _T.__imul__: _T.__mul__,
        _T.__itruediv__: _T.__truediv__, operator.iadd: _T.__add__,
        torch.relu_: torch.relu,
    }  # fmt: skip
    for func in list(HANDLERS):
        name = getattr(func, "__name__", "")
        variant = getattr(_T, f"{name}_", None)
        if getattr(_T, name, None) is func and variant is not None and not name.endswith("_"):
            found[variant] = func
    return found


# In place and out of place are one: the tensor then stands for the result.
IN_PLACE = _in_place()
