"""The Fréchet distance of features: how far apart two sets of pictures are.

References:
    GANs Trained by a Two Time-Scale Update Rule, https://arxiv.org/abs/1706.08500
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Moments:
    """Mean and covariance of features that come in batches, in float64.

    Batches merge by their own means: sums of squares of raw values would lose the digits that
    the covariance is made of.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, features: Tensor) -> None:
        """Take in features (B, D)."""
        x = features.double().cpu()
        mean, count = x.mean(0), self.count + len(x)
        shift = mean - self.mean
        self.scatter = self.scatter + (x - mean).mT @ (x - mean)
        self.scatter = self.scatter + torch.outer(shift, shift) * (self.count * len(x) / count)
        self.mean, self.count = self.mean + shift * (len(x) / count), count

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased; of two samples or more."""
        return self.scatter / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), the distance of two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of C_a^1/2 C_b C_a^1/2,
    which is symmetric and has no negative ones but by rounding; C_a C_b itself is neither, and
    its root by iteration fails where features depend on each other.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root_a = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    inner = torch.linalg.eigvalsh(root_a @ b.covariance @ root_a)
    trace = a.covariance.trace() + b.covariance.trace() - 2 * inner.clamp(min=0).sqrt().sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + trace))
