"""Operations of which each number of the result comes from one number of each operand."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.bands.record import broadcast_grid, flatten, handles, infer, name_of, record_local
from hirescli.bands.tensor import Node, unknown

_T = Tensor


@handles(
    F.silu, F.gelu, F.relu, F.leaky_relu, F.elu, F.tanh, F.sigmoid, F.softplus, F.mish,
    F.hardswish, F.hardsigmoid, F.relu6, F.logsigmoid, F.softsign,
    torch.relu, torch.tanh, torch.sigmoid, torch.exp, torch.log, torch.sqrt, torch.rsqrt,
    torch.abs, torch.neg, torch.negative, torch.square, torch.clamp, torch.clip, torch.erf,
    torch.sin, torch.cos, torch.reciprocal, torch.pow, torch.add, torch.sub, torch.mul,
    torch.div, torch.true_divide, torch.addcmul, torch.addcdiv, torch.lerp, torch.where,
    torch.maximum, torch.minimum, torch.rsub, torch.subtract, torch.multiply, torch.divide,
    torch.zeros_like, torch.ones_like, torch.nan_to_num, torch.round, torch.floor,
    _T.relu, _T.tanh, _T.sigmoid, _T.exp, _T.log, _T.sqrt, _T.rsqrt, _T.abs, _T.neg, _T.square,
    _T.clamp, _T.clip, _T.erf, _T.sin, _T.cos, _T.reciprocal, _T.pow, _T.add, _T.sub, _T.mul,
    _T.div, _T.true_divide, _T.addcmul, _T.addcdiv, _T.lerp, _T.where, _T.maximum, _T.minimum,
    _T.__add__, _T.__radd__, _T.__sub__, _T.__rsub__, _T.__mul__, _T.__rmul__, _T.__truediv__,
    _T.__rtruediv__, _T.__rdiv__, _T.__pow__, _T.__rpow__, _T.__neg__, _T.__abs__,
    _T.masked_fill, _T.nan_to_num, _T.round, _T.floor, _T.subtract, _T.multiply, _T.divide,
)  # fmt: skip
def elementwise(func: Any, *args: Any, **kwargs: Any) -> Node:
    """Each number of the result comes from one number of each operand, as they broadcast."""
    (meta,) = infer(func, args, kwargs)
    name = name_of(func).strip("_")
    nodes = [arg for arg in flatten((args, kwargs)) if isinstance(arg, Node)]
    grid = broadcast_grid(name, nodes, meta.shape)
    # Storing a sum of two values saves one of them.
    joins = len({id(n) for n in nodes if n.grid is not None}) > 1
    if grid is not None and func in (torch.zeros_like, torch.ones_like):
        kwargs = {k: v for k, v in kwargs.items() if k in ("dtype", "device")}
    return record_local(
        func, args, kwargs,
        name=name, shape=meta.shape, dtype=meta.dtype, grid=grid, anchor=joins, cuts=True,
    )  # fmt: skip


@handles(_T.to, _T.type_as)
def cast(func: Any, x: Node, *args: Any, **kwargs: Any) -> Node:
    """The same numbers in another dtype; the device is the engine's matter."""
    dtype = kwargs.get("dtype")
    for arg in (*args, kwargs.get("other")):
        if isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, (Node, Tensor)):
            dtype = arg.dtype
    return _as_dtype(x, dtype or x.dtype)


@handles(_T.float, _T.half, _T.bfloat16, _T.double)
def named_cast(func: Any, x: Node, *_: Any, **__: Any) -> Node:
    """``x.float()`` and its like."""
    dtypes = {"float": torch.float32, "half": torch.float16, "double": torch.float64}
    return _as_dtype(x, dtypes.get(name_of(func), torch.bfloat16))


def _as_dtype(x: Node, dtype: torch.dtype) -> Node:
    if dtype == x.dtype:
        return x
    return record_local(
        lambda t: t.to(dtype), (x,), {}, name="to", shape=x.shape, dtype=dtype, grid=x.grid
    )


@handles(_T.contiguous, _T.detach, _T.clone, _T.cpu, _T.cuda, torch.clone, torch.detach,
         F.dropout, _T.requires_grad_)  # fmt: skip
def same(func: Any, x: Node, *args: Any, **kwargs: Any) -> Node:
    """What changes no number; dropout among it, as modules are evaluated."""
    training = kwargs.get("training", args[1] if func is F.dropout and len(args) > 1 else False)
    if func is F.dropout and training and (args[0] if args else kwargs.get("p", 0.5)) > 0:
        raise unknown("dropout", "is random; call .eval() on the component first")
    return x


@handles(F.softmax, torch.softmax, _T.softmax, F.log_softmax)
def softmax(func: Any, x: Node, dim: int, *args: Any, **kwargs: Any) -> Node:
    """Softmax over a dimension that does not hold the rows."""
    if x.grid is not None and dim % len(x.shape) == x.grid.dim:
        raise unknown("softmax", "runs over the rows; use scaled_dot_product_attention")
    (meta,) = infer(func, (x, dim, *args), kwargs)
    return record_local(
        func, (x, dim, *args), kwargs,
        name="softmax", shape=meta.shape, dtype=meta.dtype, grid=x.grid,
    )  # fmt: skip
