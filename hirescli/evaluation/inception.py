"""The network whose features FID compares: Inception v3 as its 2015 weights want it.

Names of weights are those of the common PyTorch port of these (`Mixed_5b.branch1x1.conv.weight`
and so on). It differs from later Inception v3s: averages leave padding out, the last block
pools by maximum, pictures come as 299 px from -1 to 1.

References:
    Rethinking the Inception Architecture for Computer Vision, https://arxiv.org/abs/1512.00567
    GANs Trained by a Two Time-Scale Update Rule, https://arxiv.org/abs/1706.08500
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from hirescli.errors import RequestError
from hirescli.models.safetensors_check import read_tensors

FEATURES = 2048
_SIDE_PX = 299
_UNUSED = ("fc.", "AuxLogits.")  # classifiers, which some files carry along

Kernel = tuple[int, int]
Layer = tuple[str, int, Kernel]  # name, channels out, kernel
Branch = list[Layer | tuple[Layer, Layer]]  # a pair of layers reads the same and is joined


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: Kernel, *, stride: int, pad: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, h', w')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches beside each other, their channels joined.

    Args:
        c_in: Channels in.
        branches: Layers one after the other, by branch.
        pooled: Channels of the branch that pools first; 0: it only pools, in steps of two, and
            so do the last layers of all branches.
        by_maximum: Whether that branch takes the maximum and not the average.
    """

    def __init__(
        self, c_in: int, branches: list[Branch], pooled: int, *, by_maximum: bool = False
    ) -> None:
        super().__init__()
        self.branches, self.pooled, self.by_maximum = branches, pooled, by_maximum
        self.c_out = pooled or c_in
        for branch in branches:
            channels = c_in
            for place, step in enumerate(branch):
                halves = pooled == 0 and place == len(branch) - 1
                layers = _layers(step)
                for name, c_out, kernel in layers:
                    made = Conv(channels, c_out, kernel, stride=2 if halves else 1, pad=not halves)
                    self.add_module(name, made)
                channels = sum(c_out for _, c_out, _ in layers)
            self.c_out += channels
        if pooled:
            self.branch_pool = Conv(c_in, pooled, (1, 1), stride=1, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, h', w')."""
        outputs = []
        for branch in self.branches:
            y = x
            for step in branch:
                y = torch.cat([self.get_submodule(name)(y) for name, _, _ in _layers(step)], 1)
            outputs.append(y)
        if not self.pooled:
            return torch.cat([*outputs, F.max_pool2d(x, 3, 2)], 1)
        if self.by_maximum:
            y = F.max_pool2d(x, 3, 1, 1)
        else:
            y = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*outputs, self.branch_pool(y)], 1)


def _layers(step: Layer | tuple[Layer, Layer]) -> tuple[Layer, ...]:
    return (step,) if isinstance(step[0], str) else step


def _a(c_in: int, pooled: int) -> Mixed:
    return Mixed(
        c_in,
        [
            [("branch1x1", 64, (1, 1))],
            [("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))],
            [
                ("branch3x3dbl_1", 64, (1, 1)),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ],
        ],
        pooled,
    )


def _b(c_in: int) -> Mixed:
    return Mixed(
        c_in,
        [
            [("branch3x3", 384, (3, 3))],
            [
                ("branch3x3dbl_1", 64, (1, 1)),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ],
        ],
        0,
    )


def _c(c_in: int, c: int) -> Mixed:
    return Mixed(
        c_in,
        [
            [("branch1x1", 192, (1, 1))],
            [
                ("branch7x7_1", c, (1, 1)),
                ("branch7x7_2", c, (1, 7)),
                ("branch7x7_3", 192, (7, 1)),
            ],
            [
                ("branch7x7dbl_1", c, (1, 1)),
                ("branch7x7dbl_2", c, (7, 1)),
                ("branch7x7dbl_3", c, (1, 7)),
                ("branch7x7dbl_4", c, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            ],
        ],
        192,
    )


def _d(c_in: int) -> Mixed:
    return Mixed(
        c_in,
        [
            [("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))],
            [
                ("branch7x7x3_1", 192, (1, 1)),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, (3, 3)),
            ],
        ],
        0,
    )


def _e(c_in: int, *, by_maximum: bool) -> Mixed:
    def pair(name: str) -> tuple[Layer, Layer]:
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    return Mixed(
        c_in,
        [
            [("branch1x1", 320, (1, 1))],
            [("branch3x3_1", 384, (1, 1)), pair("branch3x3_2")],
            [
                ("branch3x3dbl_1", 448, (1, 1)),
                ("branch3x3dbl_2", 384, (3, 3)),
                pair("branch3x3dbl_3"),
            ],
        ],
        192,
        by_maximum=by_maximum,
    )


class Inception(nn.Module):
    """Pictures to the 2048 features before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), stride=2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3), stride=1, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3), stride=1, pad=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, (1, 1), stride=1, pad=False)
        self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3), stride=1, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c = _c(768, 128), _c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _c(768, 160), _c(768, 192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, by_maximum=False), _e(2048, by_maximum=True)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, h, w) in [0, 1] to features (B, 2048)."""
        size = (_SIDE_PX, _SIDE_PX)
        x = F.interpolate(pictures, size, mode="bilinear", align_corners=False) * 2 - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))  # type: ignore[no-any-return]


def load_inception(path: Path) -> Inception:
    """The network with weights from a safetensors file; classifiers in it are left out.

    Raises:
        RequestError: If the file is damaged, or holds other weights than these.
    """
    network = Inception()
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = read_tensors(path).shapes
    for key, shape in wanted.items():
        # Counts of training batches; older files have none, and nothing reads them.
        if found.get(key) != shape and not key.endswith("num_batches_tracked"):
            raise RequestError(
                f"{path}: {key} is {found.get(key, 'missing')}, Inception v3 for FID has {shape}"
            )
    for key in found:
        if key not in wanted and not key.startswith(_UNUSED):
            raise RequestError(f"{path} holds {key}, which Inception v3 for FID has not")
    tensors = {key: value for key, value in load_file(path).items() if key in wanted}
    network.load_state_dict(tensors, strict=False)
    return network.eval().requires_grad_(False)
