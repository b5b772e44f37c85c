"""`hires bench clear`, in a tiny shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from hirescli.errors import RequestError
from hirescli.evaluation import clear
from hirescli.evaluation.clear import FULL, PROJECTIONS, WAYS, clear_table, flops, measure_clear


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clear, "HEADS", 2)
    monkeypatch.setattr(clear, "CHANNELS", 16)
    monkeypatch.setattr(clear, "TEXT_TOKENS", 9)


@pytest.mark.usefixtures("tiny")
def test_page_chart_and_json(hires: Callable, tmp_path: Path) -> None:
    words = ["bench", "clear", "--grids", "40,32", "--device", "cpu", "--threads", "1"]
    ran = hires(*words, "-o", "page.md", "--chart", "chart.png", "--json")
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    rows = [(row["grid"], row["way"]) for row in facts["rows"]]
    assert rows == [(grid, way) for grid in (32, 40) for way in WAYS]
    assert all(row["seconds"] > 0 and row["peak_bytes"] >= 0 for row in facts["rows"])
    text = Path("page.md").read_text()
    assert "Written by `hires bench clear --dtype float32 --threads 1" in text
    assert "| 640x640 | 40x40 | window 8 |" in text
    with Image.open("chart.png") as chart:
        assert chart.width > chart.height


@pytest.mark.usefixtures("tiny")
def test_what_would_take_too_long_is_left_out() -> None:
    options = {"device": "cpu", "dtype": torch.float32, "threads": 1}
    rows = measure_clear([32, 33], **options, most_seconds=0)  # type: ignore[arg-type]
    assert [row.note[:9] for row in rows] == [""] * len(WAYS) + ["not tried"] * len(WAYS)
    (page, _) = clear_table(rows)
    assert page.count("not tried: about") == len(WAYS)


def test_operations_are_counted() -> None:
    """FLUX's layer at 1024 px: four products of 3072 by 3072; full attention of 4608 tokens."""
    assert flops(PROJECTIONS, 64) == 8 * 4608 * 3072**2
    assert flops(FULL, 64) == 4 * 3072 * 4608**2
    for window, share in ((8, 0.3), (16, 0.4), (32, 0.8)):
        assert flops(f"window {window}", 64) < share * flops(FULL, 64)
    # The text tokens' own attention and the edges aside, CLEAR's grows as the tokens do.
    assert flops("window 8", 512) / flops("window 8", 256) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--grids", "64,31"], "grid 31 is smaller than window 32"),
        (["--grids", "64x64"], 'grids "64x64" are not understood'),
        (["--device", "tpu"], 'device "tpu" cannot be measured'),
        (["--sizes", "64"], "--sizes has no effect"),
    ],
)
def test_wrong_requests_are_refused(hires: Callable, words: list[str], told: str) -> None:
    ran = hires("bench", "clear", *words)
    assert ran.code == 2
    assert told in " ".join(ran.err.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="no CUDA device"):
        measure_clear([64], device="cuda", dtype=torch.bfloat16, threads=1)
