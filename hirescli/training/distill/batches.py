"""Batches: what a step sees depends on seed, step and place in the batch only.

So a run that is resumed sees what it would have seen, and so does one that is spread over more
processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

_DRAW, _ORDER = 0, 1  # kinds of randomness that share no seed


@dataclass(frozen=True)
class Batch:
    """Samples of one step, float32; B of them.

    Attributes:
        x_0: Clean latents (B, C, h, w).
        begun: What noise is added to: x_0, or latents of the degraded picture.
        noise: (B, C, h, w).
        timesteps: (B,), int64.
        text: Text states (B, tokens, channels).
        pooled: Pooled text states (B, channels); None: of families without.
    """

    x_0: Tensor
    begun: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Tensor
    pooled: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(
            x_0=self.x_0.to(device),
            begun=self.begun.to(device),
            noise=self.noise.to(device),
            timesteps=self.timesteps.to(device),
            text=self.text.to(device),
            pooled=None if self.pooled is None else self.pooled.to(device),
        )


class Samples(Protocol):
    """Where batches are from."""

    def batch(self, step: int, items: Sequence[int]) -> Batch:
        """The samples at these places of a step's batch."""


def seed_of(*numbers: int) -> int:
    """One seed of several numbers; near ones give seeds that have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def generator_of(seed: int, step: int, item: int) -> torch.Generator:
    """The randomness of one sample of one step."""
    return torch.Generator().manual_seed(seed_of(_DRAW, seed, step, item))


def number_below(end: int, generator: torch.Generator) -> int:
    """A number 0 to `end` - 1."""
    return int(torch.randint(end, (1,), generator=generator))


def chance(share: float, generator: torch.Generator) -> bool:
    """True for this share of calls."""
    return float(torch.rand(1, generator=generator)) < share


def place_in_turn(number: int, count: int, seed: int) -> int:
    """Which of `count` things is the `number`-th: all in turn, in another order every round."""
    turn, place = divmod(number, count)
    return int(_order(count, seed, turn)[place])


@lru_cache(maxsize=2)
def _order(count: int, seed: int, turn: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng([_ORDER, seed, turn]).permutation(count)
