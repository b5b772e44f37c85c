"""Charts: PNG files that other readers open, and what is never replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hirescli.errors import RequestError
from hirescli.evaluation.bands import Comparison
from hirescli.evaluation.benchmark import ImageRun
from hirescli.evaluation.case import Outcome
from hirescli.evaluation.charts import (
    bands_chart,
    check_target,
    decodes_chart,
    drawn,
    gpu_chart,
    pictures_chart,
)
from hirescli.evaluation.decoding import Decode
from hirescli.evaluation.gpu import Row

RUNS = [
    ImageRun(
        width_px=side, height_px=side, stages=3, seconds=side / 100, peak_rss_bytes=side * 10**6,
        planned_seconds=side / 110, planned_peak_bytes=side * 10**6, planned_spill_bytes=0,
        sha256="", same_bytes=None, file_bytes=1, journal_share=0.1, readers={},
    )
    for side in (512, 1024)
]  # fmt: skip
BANDS = [
    Comparison(
        component="built-in UNet", width_px=64, height_px=64, rows=rows, passes=3,
        plain_seconds=(1.0, 2.0), banded_seconds=(1.5, 1.6), error=1e-6, exact_px=64,
        plain_from_exact=1e-6, banded_from_exact=1e-6, planned_peak_bytes=1,
        plain_peak_bytes=2 * 10**9, banded_peak_bytes=10**9, work=1.2,
    )
    for rows in (4, 8)
]  # fmt: skip
GPU = [
    Row("denoiser", "softmax", 1024, seconds=0.1, peak_bytes=6 * 10**9),
    Row("denoiser", "softmax", 2048, note="out of memory"),
    Row("denoiser", "streamed", 1024, seconds=0.2, peak_bytes=4 * 10**9),
    Row("denoiser", "streamed", 2048, seconds=0.9, peak_bytes=4 * 10**9),
    Row("decoder", "whole", 1024, note="out of memory"),
]


def decodes() -> list[Decode]:
    outcome = Outcome(seconds=1.0, peak_bytes=10**9, planned_peak_bytes=None, tiles=1)
    return [Decode(64, 64, way, outcome, 0.0, 0.0, None) for way in ("plain", "banded", "tiled")]


CHARTS: dict[str, Callable[[Path], None]] = {
    "pictures": lambda path: pictures_chart(path, RUNS),
    "bands": lambda path: bands_chart(path, BANDS),
    "decodes": lambda path: decodes_chart(path, decodes()),
    "gpu": lambda path: gpu_chart(path, GPU),
    "gpu, nothing worked": lambda path: gpu_chart(path, GPU[1:2]),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_a_picture(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.png"
    CHARTS[name](path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] >= 1000
    assert (pixels == 255).all(axis=2).mean() > 0.5  # on a light ground
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_bars_are_as_long_as_their_numbers(tmp_path: Path) -> None:
    """Of two runs, one takes twice as long: so do the blue pixels of the left panel."""
    pictures_chart(tmp_path / "a.png", RUNS)
    with Image.open(tmp_path / "a.png") as image:
        left = np.asarray(image.convert("RGB"))[:, : image.width // 2].astype(int)
    blue = (np.abs(left - [0, 0x72, 0xB2]).sum(axis=2) < 8).sum(axis=0)
    columns = np.flatnonzero(blue > 0)
    gap = columns[np.flatnonzero(np.diff(columns) > 20)[0]]
    heights = blue[columns[columns <= gap]].max(), blue[columns[columns > gap]].max()
    assert heights[1] / heights[0] == pytest.approx(2, rel=0.1)


def test_ours_are_drawn_again_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    check_target(path)
    pictures_chart(path, RUNS)
    check_target(path)
    Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(RequestError, match="no chart"):
        check_target(path)
    for wrong in (tmp_path / "a.jpg", tmp_path / "gone" / "a.png"):
        with pytest.raises(RequestError, match=r"\.png|gone"):
            check_target(wrong)


def test_a_chart_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with drawn(tmp_path / "a.png", width=5, height=3, title="$x$"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_bench_checks_the_chart_before_it_measures(hires: Callable) -> None:
    ran = hires("bench", "builtin", "--chart", "gone/a.png")
    assert ran.code == 2
    assert "gone" in ran.err
