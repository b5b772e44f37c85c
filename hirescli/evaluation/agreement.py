"""How far a result is from the one that is wanted."""

from __future__ import annotations

import math

from torch import Tensor


def max_error(made: Tensor, wanted: Tensor) -> float:
    """Largest difference, in standard deviations of what is wanted; of equal shapes."""
    wanted = wanted.double()
    return float((made.double() - wanted).abs().max() / wanted.std())


def rmse(made: Tensor, wanted: Tensor) -> float:
    """Root of the mean square difference, in standard deviations of what is wanted."""
    return _root_mean_square(made, wanted) / float(wanted.double().std())


def psnr(made: Tensor, wanted: Tensor) -> float | None:
    """Peak signal to noise in dB; the peak is the range of what is wanted. None if equal."""
    noise = _root_mean_square(made, wanted)
    peak = float(wanted.double().max() - wanted.double().min())
    return 20 * math.log10(peak / noise) if noise else None


def _root_mean_square(made: Tensor, wanted: Tensor) -> float:
    return float((made.double() - wanted.double()).square().mean().sqrt())
