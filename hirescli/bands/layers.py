"""Layers: convolutions, linear maps, norms, upsampling.

Shapes of images: (1, C, rows, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.bands.record import flatten, handles, infer, record_local
from hirescli.bands.reductions import Moments
from hirescli.bands.sums import record_reduction
from hirescli.bands.tensor import Grid, Node, Span, unknown
from hirescli.planning.trace import CONVOLUTION, Stretch, Window


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


@handles(torch.conv2d)
def conv2d(
    func: Any, x: Node, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Node:  # fmt: skip
    """A convolution reads dilation * (kernel - 1) + 1 rows for a row."""
    if isinstance(padding, str) and padding != "valid":
        raise unknown(f'conv2d with padding "{padding}"')
    stride, dilation = _pair(stride), _pair(dilation)
    padding = (0, 0) if isinstance(padding, str) else _pair(padding)
    (meta,) = infer(func, (x, weight, bias, stride, padding, dilation, groups), {})
    grid = _image_grid("conv2d", x)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    down, across = (Window(s, t, p, p) for s, t, p in zip(spans, stride, padding, strict=True))
    made = Grid(meta.shape[2], meta.shape[3], grid.level / stride[0], 2)

    layout = _layout(weight)

    def kernel(bands: list[Any], span: Span) -> Tensor:
        rows = bands[0] if layout is None else bands[0].contiguous(memory_format=layout)
        pads = (padding[0] if span.native else 0, padding[1])
        b = None if bias is None else span.bring(bias)
        return F.conv2d(rows, span.bring(weight), b, stride, pads, dilation, groups)

    return record_local(
        None, (x,), {},
        name=CONVOLUTION, shape=meta.shape, dtype=meta.dtype, grid=made, kernel=kernel,
        reach=_unless_identity(down), width_reach=_unless_identity(across),
        native_zeros=padding[0], anchor=True,
        px_flops=2.0 * weight.numel(),
        weights=(weight,) if bias is None else (weight, bias),
    )  # fmt: skip


# Longest sum (channels * kernel height * kernel width) that a CPU computes channels-last. Bands
# are quicker so, but long sums lose a digit: 5e-5 of the deviation after an SD-sized decoder,
# where the weights' own format gives 2e-5.
_LAST_SUM = 256 * 9


def _layout(weight: Tensor) -> torch.memory_format | None:
    """The memory format to compute a convolution in; None where it makes no difference."""
    dense, last = weight.is_contiguous(), weight.is_contiguous(memory_format=torch.channels_last)
    if dense and last:
        return None
    short = weight.device.type == "cpu" and weight[0].numel() <= _LAST_SUM
    return torch.channels_last if last or short else torch.contiguous_format


def _unless_identity(window: Window) -> Window | None:
    return None if window == Window(1) else window


def _image_grid(name: str, x: Node) -> Grid:
    if x.grid is None or len(x.shape) != 4 or x.grid.dim != 2 or x.per_row != 1:
        raise unknown(name, "needs an image (B, C, H, W)")
    return x.grid


@handles(F.linear)
def linear(func: Any, x: Node, weight: Tensor, bias: Tensor | None = None) -> Node:
    """A linear map of the last dimension."""
    (meta,) = infer(func, (x, weight, bias), {})
    if x.grid is not None and x.grid.dim == len(x.shape) - 1:
        raise unknown("linear", "mixes rows")
    px = 1 if x.grid is None else x.grid.rows * x.grid.width
    return record_local(
        lambda rows, w, b: F.linear(rows, w, b), (x, weight, bias), {},
        name="linear", shape=meta.shape, dtype=meta.dtype, grid=x.grid, anchor=True,
        px_flops=2.0 * weight.shape[1] * meta.numel() / px,
        weights=(weight,) if bias is None else (weight, bias),
    )  # fmt: skip


@handles(F.layer_norm)
def layer_norm(
    func: Any, x: Node, normalized_shape: Sequence[int], weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Node:  # fmt: skip
    """Normalises the last dimensions, which must not hold the rows."""
    _last_dims("layer_norm", x, normalized_shape)
    return record_local(
        F.layer_norm, (x, list(normalized_shape), weight, bias, eps), {},
        name="layer_norm", shape=x.shape, dtype=x.dtype, grid=x.grid,
        weights=tuple(w for w in (weight, bias) if w is not None),
    )  # fmt: skip


@handles(F.rms_norm, torch.rms_norm)
def rms_norm(
    func: Any, x: Node, normalized_shape: Sequence[int], weight: Tensor | None = None,
    eps: float | None = None,
) -> Node:  # fmt: skip
    """Normalises the last dimensions, which must not hold the rows."""
    _last_dims("rms_norm", x, normalized_shape)
    px = 1 if x.grid is None else x.grid.rows * x.grid.width
    scratch = _RMS_BYTES * x.shape.numel() / px if x.dtype.itemsize < _FLOAT_BYTES else 0.0
    return record_local(
        F.rms_norm, (x, list(normalized_shape), weight, eps), {},
        name="rms_norm", shape=x.shape, dtype=x.dtype, grid=x.grid,
        weights=() if weight is None else (weight,),
        scratch_bytes=int(scratch) if x.grid is None else 0,
        px_scratch_bytes=0.0 if x.grid is None else scratch,
    )  # fmt: skip


_FLOAT_BYTES = 4
# Of each number: torch normalises half precision in float32, in three steps.
_RMS_BYTES = 12


def _last_dims(name: str, x: Node, normalized_shape: Sequence[int]) -> None:
    if x.grid is not None and x.grid.dim >= len(x.shape) - len(normalized_shape):
        raise unknown(name, "runs over the rows")


@handles(F.group_norm)
def group_norm(
    func: Any, x: Node, num_groups: int, weight: Tensor | None = None,
    bias: Tensor | None = None, eps: float = 1e-5,
) -> Node:  # fmt: skip
    """Moments over all rows, then a scale and a shift for each channel."""
    if x.grid is None or x.grid.dim < 2:
        raise unknown("group_norm", "needs rows behind the channels (B, C, ...)")
    moments = record_reduction(
        x, Moments(num_groups), name="moments", shape=torch.Size((2, num_groups)),
        dtype=torch.float64,
    )  # fmt: skip
    per_group = x.shape[1] // num_groups
    dtype = torch.promote_types(x.dtype, torch.float32)

    def kernel(bands: list[Any], span: Span) -> Tensor:
        rows, (mean, var) = bands
        # With moments given, batch norm does what group norm does to one sample, in one sweep.
        return F.batch_norm(
            rows,
            mean.to(dtype).repeat_interleave(per_group),
            var.to(dtype).repeat_interleave(per_group),
            None if weight is None else span.bring(weight).to(dtype),
            None if bias is None else span.bring(bias).to(dtype),
            training=False,
            eps=eps,
        )

    return record_local(
        None, (x, moments), {},
        name="group_norm", shape=x.shape, dtype=x.dtype, grid=x.grid, kernel=kernel,
        weights=tuple(w for w in (weight, bias) if w is not None),
    )  # fmt: skip


@handles(F.interpolate)
def interpolate(
    func: Any, x: Node, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: Any = None, recompute_scale_factor: Any = None, antialias: bool = False,
) -> Node:  # fmt: skip
    """Nearest upsampling by a whole factor, or to a given size below that."""
    if mode != "nearest":
        raise unknown(f'interpolate of mode "{mode}"')
    grid = _image_grid("interpolate", x)
    options = {"scale_factor": scale_factor, "mode": mode}
    (meta,) = infer(func, (x, size), {**options, "recompute_scale_factor": recompute_scale_factor})
    rows, width = meta.shape[2], meta.shape[3]
    factor = max(math.ceil(rows / grid.rows), math.ceil(width / grid.width))
    sides = ((rows, grid.rows), (width, grid.width))
    if not all(factor * (size - 1) < made <= factor * size for made, size in sides):
        raise unknown("interpolate", f"from {grid.rows}x{grid.width} to {rows}x{width}")
    whole = rows == factor * grid.rows
    table = _nearest_rows(grid.rows, size, scale_factor)

    def kernel(bands: list[Any], span: Span) -> Tensor:
        (band,) = bands
        if whole:
            made = F.interpolate(band, size=(band.shape[2] * factor, width), mode="nearest")
            return made.narrow(2, span.lo - factor * span.first, span.rows)
        index = table[span.lo : span.hi] - span.first
        band = band.index_select(2, index.to(band.device))
        return F.interpolate(band, size=(span.rows, width), mode="nearest")

    return record_local(
        None, (x,), {},
        name="interpolate", shape=meta.shape, dtype=x.dtype, kernel=kernel,
        grid=Grid(rows, width, grid.level * factor, 2),
        reach=Stretch(factor), width_reach=Stretch(factor),
    )  # fmt: skip


def _nearest_rows(rows_in: int, size: Any, scale_factor: Any) -> Tensor:
    """For each output row the input row that torch itself takes."""
    numbers = torch.arange(rows_in, dtype=torch.float32).view(1, 1, rows_in, 1)
    if size is not None:
        target = (flatten(size)[0], 1)
        return F.interpolate(numbers, size=target, mode="nearest").flatten().long()
    scale = flatten(scale_factor)[0]
    made = F.interpolate(numbers, scale_factor=(scale, 1.0), mode="nearest")
    return made.flatten().long()


@handles(F.avg_pool2d)
def avg_pool2d(
    func: Any, x: Node, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
) -> Node:  # fmt: skip
    """The mean of windows, without padding."""
    kernel_size = _pair(kernel_size)
    stride = kernel_size if stride is None else _pair(stride)
    if _pair(padding) != (0, 0) or ceil_mode:
        raise unknown("avg_pool2d", "with padding or ceil_mode")
    (meta,) = infer(func, (x, kernel_size, stride), {})
    grid = _image_grid("avg_pool2d", x)
    return record_local(
        lambda rows: F.avg_pool2d(rows, kernel_size, stride), (x,), {},
        name="avg_pool2d", shape=meta.shape, dtype=x.dtype,
        grid=Grid(meta.shape[2], meta.shape[3], grid.level * Fraction(1, stride[0]), 2),
        reach=Window(kernel_size[0], stride[0]), width_reach=Window(kernel_size[1], stride[1]),
    )  # fmt: skip
