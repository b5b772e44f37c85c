"""Reductions: what needs all rows, folded band by band to a small state.

Each is three functions: the state of one band (`partial`), of two states one (`merge`), and of
the last state the value (`finish`). States merge in any grouping, so bands, and later several
owners of rows, are the same to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

State = Any


class Reduction(Protocol):
    """A value that needs all rows."""

    def partial(self, bands: Sequence[Tensor]) -> State:
        """The state of one band of each input."""

    def merge(self, first: State, second: State) -> State:
        """The state of both together."""

    def finish(self, state: State) -> Tensor:
        """The value."""


@dataclass(frozen=True)
class Spread:
    """How many numbers, their mean, and the sum of squared distances from it.

    Shapes of `mean` and `squares` agree; both are float64.
    """

    count: int
    mean: Tensor
    squares: Tensor

    def with_(self, other: Spread) -> Spread:
        """Of both together, by the law of total variance (Chan et al. 1979)."""
        count = self.count + other.count
        step = other.mean - self.mean
        return Spread(
            count,
            self.mean + step * (other.count / count),
            self.squares + other.squares + step**2 * (self.count * other.count / count),
        )


def channel_spread(x: Tensor) -> Spread:
    """Of each channel of one sample (1, C, ...), in one sweep over the memory."""
    if not _channels_last(x):
        return _spread(x.contiguous())
    # Channels-last sums are plain float32 ones, whose error grows with their length: 7e-5 of
    # the variance over 512x512 pixels, 4e-7 over parts of 4096.
    rows = max(1, _PIXELS // x.shape[3])
    first, *others = (_spread(part) for part in x.split(rows, dim=2))
    for other in others:
        first = first.with_(other)
    return first


_PIXELS = 4096


def _spread(x: Tensor) -> Spread:
    # Given float32 statistics to update, half precision is summed in float32 too.
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    scratch = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    mean, var = torch.ops.aten.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)
    count = x.numel() // x.shape[1]
    return Spread(count, mean.double(), var.double() * count)


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each group of channels: (2, groups), float64.

    Attributes:
        groups: Number of groups; channels are a multiple of it.
    """

    groups: int

    def partial(self, bands: Sequence[Tensor]) -> Spread:
        """Of a band (1, C, ...)."""
        channels = channel_spread(bands[0])
        mean = channels.mean.view(self.groups, -1)  # (groups, channels of a group)
        group_mean = mean.mean(1)
        between = (mean - group_mean[:, None]) ** 2 * channels.count
        squares = channels.squares.view(self.groups, -1).sum(1) + between.sum(1)
        return Spread(channels.count * mean.shape[1], group_mean, squares)

    def merge(self, first: Spread, second: Spread) -> Spread:
        """By the law of total variance."""
        return first.with_(second)

    def finish(self, state: Spread) -> Tensor:
        """Means, and variances over the count."""
        return torch.stack([state.mean, state.squares / state.count])


@dataclass(frozen=True)
class Deviation:
    """Variance or standard deviation over dimensions, the rows among them.

    Attributes:
        dims: The dimensions that are reduced.
        keepdim: Whether they stay, with size one.
        correction: Subtracted from the count.
        root: Whether the deviation is wanted.
        dtype: Of the value.
    """

    dims: tuple[int, ...]
    keepdim: bool
    correction: float
    root: bool
    dtype: torch.dtype

    def partial(self, bands: Sequence[Tensor]) -> Spread:
        """Of one band."""
        x = bands[0].double()
        var, mean = torch.var_mean(x, self.dims, correction=0, keepdim=self.keepdim)
        count = x.numel() // max(1, mean.numel())
        return Spread(count, mean, var * count)

    def merge(self, first: Spread, second: Spread) -> Spread:
        """By the law of total variance."""
        return first.with_(second)

    def finish(self, state: Spread) -> Tensor:
        """The variance, or its root."""
        var = state.squares / (state.count - self.correction)
        return (var.sqrt() if self.root else var).to(self.dtype)


@dataclass(frozen=True)
class Sum:
    """A sum over the rows of what `term` makes of a band; summed up in float64.

    Attributes:
        term: The sum of one band.
        divisor: What the sum is divided by.
        dtype: Of the value.
    """

    term: Callable[[Sequence[Tensor]], Tensor]
    divisor: float
    dtype: torch.dtype

    def partial(self, bands: Sequence[Tensor]) -> Tensor:
        """The sum of one band."""
        return self.term(bands).double()

    def merge(self, first: Tensor, second: Tensor) -> Tensor:
        """The sum of both."""
        return first + second

    def finish(self, state: Tensor) -> Tensor:
        """The sum or mean of all rows."""
        return (state / self.divisor).to(self.dtype)
