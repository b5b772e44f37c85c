"""Features of pictures, and how far apart two sets of pictures are by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from hirescli.errors import RequestError
from hirescli.evaluation.efficientnet import SIDE_PX, load_efficientnet
from hirescli.evaluation.frechet import Moments
from hirescli.evaluation.frechet import frechet_distance as of_moments

if TYPE_CHECKING:
    from torch import nn

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Features = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
_BATCH = 32


@torch.no_grad()
def features(
    pictures: Pictures, network: nn.Module | None = None, *, side_px: int | None = None
) -> Features:
    """Features of pictures, by EfficientNet-Lite0 at 224 px.

    Args:
        pictures: (N, H, W, 3) uint8 sRGB, of any equal size; resized to 224 px, smoothed when
            that makes them smaller. A memory map will do: batches are read one by one.
        network: Pictures (B, 3, side, side) from 0 to 255 to features (B, d); absent: loaded.
        side_px: What pictures are resized to; absent: 224.

    Returns:
        (N, d) float32; d is 1280 for the network that is loaded.

    Raises:
        RequestError: If the pictures have another shape, or the weights are not installed.
    """
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise RequestError(
            f"pictures are {pictures.dtype} {pictures.shape}; features need uint8 (N, H, W, 3)"
        )
    network = load_efficientnet() if network is None else network
    side_px = SIDE_PX if side_px is None else side_px
    device = next(network.parameters()).device
    made = [
        network(_resized(pictures[start : start + _BATCH], side_px).to(device))
        .float()
        .cpu()
        .numpy()
        for start in range(0, len(pictures), _BATCH)
    ]
    joined: Features = np.concatenate(made)
    return joined


def frechet_distance(a: Features, b: Features) -> float:
    """The Fréchet distance of the Gaussians of two sets of features (N, d) and (M, d).

    In float64. With fewer samples than features it is larger than of many: compare only
    distances of equal N and M.

    Raises:
        RequestError: If a set has fewer than two samples, or their d differ.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise RequestError(
            f"features are {a.shape} and {b.shape}; a Fréchet distance needs two samples or more "
            "of each, and the same features"
        )
    return of_moments(_moments(a), _moments(b))


def _moments(values: Features) -> Moments:
    moments = Moments()
    moments.add(torch.from_numpy(np.array(values)))
    return moments


def _resized(pictures: Pictures, side_px: int) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, side, side) float, still from 0 to 255."""
    x = torch.from_numpy(np.array(pictures))  # a copy: maps cannot be written
    x = x.permute(0, 3, 1, 2).float()
    size = (side_px, side_px)
    if x.shape[2:] == size:
        return x
    x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
    return x.clamp(0, 255)
