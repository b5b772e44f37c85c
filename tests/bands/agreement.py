"""When two results agree, and whether a component is as it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # of the output's standard deviation


def assert_exact(made: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Plain tensors in float32, each within the tolerance of the one that is wanted."""
    assert len(made) == len(wanted)
    for index, (one, other) in enumerate(zip(made, wanted, strict=True)):
        assert type(one) is Tensor, f"output {index} is a {type(one).__name__}"
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        assert not one.requires_grad
        error = float((one.double() - other.double()).abs().max() / other.double().std())
        assert error <= TOLERANCE, f"output {index} is off by {error:.1e} standard deviations"


def noise_and_signal(made: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float, float]:
    """Power of the error and of the signal; every output counts by its own deviation."""
    noise = signal = 0.0
    for one, other in zip(made, wanted, strict=True):
        scaled = (other.double() - other.double().mean()) / other.double().std()
        error = (one.double() - other.double()) / other.double().std()
        noise += float(error.square().sum())
        signal += float(scaled.square().sum())
    return noise, signal


def decibels(noise: float, signal: float) -> float:
    return 10 * math.log10(signal / noise) if noise else math.inf


Trace = dict[str, tuple[type[Any], list[str], list[int], bool]]


def trace_of(component: Any) -> Trace:
    """Class, attributes, hooks and mode of each module below; empty for other things."""
    if not isinstance(component, nn.Module):
        return {}
    return {
        name: (type(module), sorted(vars(module)), _hooks(module), module.training)
        for name, module in component.named_modules()
    }


def _hooks(module: nn.Module) -> list[int]:
    return [len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]


def weights_of(component: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Where each weight lies, and a copy of it."""
    return {
        name: (value.data_ptr(), value.clone()) for name, value in component.state_dict().items()
    }


def assert_same_weights(component: nn.Module, before: dict[str, tuple[int, Tensor]]) -> None:
    after = component.state_dict()
    assert list(after) == list(before)
    for name, (address, value) in before.items():
        assert after[name].data_ptr() == address, f"{name} has moved"
        assert torch.equal(after[name], value), f"{name} has changed"
