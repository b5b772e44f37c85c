"""The Fréchet distance of two sets of pictures, by the network that is at hand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hirescli.errors import RequestError
from hirescli.evaluation.efficientnet import load_efficientnet
from hirescli.evaluation.features import Pictures, features, frechet_distance
from hirescli.evaluation.inception import load_inception


@dataclass(frozen=True)
class Distance:
    """Of two sets.

    Attributes:
        network: Whose features were compared.
        distance: Fréchet's, squared as it is customary.
        count, other_count: Pictures of the two sets.
    """

    network: str
    distance: float
    count: int
    other_count: int

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def distance(pictures: Pictures, others: Pictures, *, inception: Path | None) -> Distance:
    """Between pictures (N, H, W, 3) and (M, H, W, 3) uint8.

    Args:
        pictures: One set.
        others: The other.
        inception: Weights of Inception v3; None: EfficientNet-Lite0.

    Raises:
        RequestError: If the weights are missing, damaged or others.
    """
    network: nn.Module
    if inception is None:
        name, network, side_px = "EfficientNet-Lite0", load_efficientnet(), None
    else:
        if not inception.exists():
            raise RequestError(f"{inception} does not exist; check the path of --inception")
        name, network = "Inception v3", _Scaled(load_inception(inception))
        side_px = pictures.shape[1]  # it resizes for itself
    values = [features(each, network, side_px=side_px) for each in (pictures, others)]
    return Distance(name, frechet_distance(*values), len(pictures), len(others))


class _Scaled(nn.Module):
    """A network of pictures from 0 to 1, for pictures from 0 to 255."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, h, w) from 0 to 255 to features (B, d)."""
        made: Tensor = self.network(pictures / 255)
        return made
