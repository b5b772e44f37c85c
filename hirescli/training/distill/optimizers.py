"""What makes the steps: AdamW, or Prodigy, which finds how large they are itself.

References:
    Prodigy: An Expeditiously Adaptive Parameter-Free Learner, https://arxiv.org/abs/2306.06101
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import nn

from hirescli.errors import RequestError
from hirescli.training.distill.settings import Optimizer

LEARNING_RATES: dict[Optimizer, float] = {"adamw": 1e-4, "prodigy": 1.0}  # as published


def check_optimizer(name: Optimizer, learning_rate: float) -> None:
    """Check that there is such an optimiser here, before anything is loaded.

    Raises:
        RequestError: If its package is not installed, or the rate is 0.
    """
    if not learning_rate > 0:
        raise RequestError(
            f"the learning rate is {learning_rate}; it must be above 0, as published "
            f"{LEARNING_RATES[name]}"
        )
    if name == "prodigy" and find_spec("prodigyopt") is None:
        raise RequestError(
            "--optimizer prodigy needs the package prodigyopt, which is not installed; install "
            'it with pip install ".[train]", or give --optimizer adamw'
        )


def make_optimizer(
    name: Optimizer, parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """A fresh optimiser without weight decay."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    from prodigyopt import Prodigy

    made: torch.optim.Optimizer = Prodigy(parameters, lr=learning_rate, weight_decay=0.0)
    return made
