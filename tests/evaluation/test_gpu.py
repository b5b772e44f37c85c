"""The measurement of `hires bench gpu`, dry: a tiny shape on the CPU."""

from __future__ import annotations

import json

import pytest
import torch

from hirescli.errors import RequestError
from hirescli.evaluation import gpu
from hirescli.evaluation.gpu import Case, Row, gpu_section, measure, run_case


def ways() -> list[tuple[str, str]]:
    return [(part, way) for part, ways in gpu.WAYS.items() for way in ways]


@pytest.mark.slow
def test_every_part_and_way_is_measured() -> None:
    rows = measure([64], "cpu", shape="tiny")
    assert [(row.part, row.way) for row in rows] == ways()
    assert [row.note for row in rows] == [""] * len(rows)
    assert all(row.seconds and row.peak_bytes is not None for row in rows)


@pytest.mark.slow
def test_a_case_in_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    case = Case("decoder", "whole", 64, "cpu", "tiny")
    made = gpu._in_child(case)
    assert (made.part, made.way, made.size_px, made.note) == ("decoder", "whole", 64, "")
    failed = gpu._in_child(Case("decoder", "whole", 64, "no such device", "tiny"))
    assert failed.note.startswith("failed: ")
    assert "no such device" in failed.note


@torch.no_grad()
def test_the_ways_compute_the_same() -> None:
    """The plain and the streamed way give one picture; softmax gives another."""
    from contextlib import ExitStack

    made = {}
    for way in gpu.WAYS["denoiser"]:
        with ExitStack() as stack:
            call = gpu._ready(Case("denoiser", way, 64, "cpu", "tiny"), stack)
            made[way] = call(64).float()
    assert torch.equal(made["LinFusion"], made["plain LinFusion"])
    torch.testing.assert_close(made["streamed"], made["LinFusion"], rtol=0.1, atol=0.1)
    assert not torch.allclose(made["softmax"], made["LinFusion"], rtol=0.1, atol=0.1)


def test_weights_are_those_of_sdxl() -> None:
    """2.57 billion parameters, and the adapter's shifts; counted on no device."""
    cases = [Case("denoiser", way, 1024, "cuda", "sdxl") for way in ("softmax", "LinFusion")]
    counts = [sum(p.numel() for p in gpu.unweighted(case).parameters()) for case in cases]
    assert counts[0] == 2_567_463_684
    assert 1.0 < counts[1] / counts[0] < 1.03


def test_out_of_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu, "_timed", exhausted)
    row = run_case(Case("decoder", "whole", 64, "cpu", "tiny"))
    assert row == Row("decoder", "whole", 64, note="out of memory")


def test_what_would_take_too_long_is_left_out() -> None:
    case = Case("denoiser", "softmax", 4096, "cuda", "sdxl")
    before = [Row("denoiser", "softmax", 2048, seconds=50.0)]
    left_out = gpu._too_long(case, before, 600.0)
    assert left_out is not None
    assert left_out.note == "not tried: up to 800 s"  # four times the tokens, sixteen the work
    linear = Case("denoiser", "LinFusion", 4096, "cuda", "sdxl")
    assert gpu._too_long(linear, before, 600.0) is None
    failed = gpu._too_long(case, [Row("denoiser", "softmax", 2048, note="out of memory")], 600.0)
    assert failed is not None
    assert failed.note == "not tried"


def test_the_section_says_what_failed() -> None:
    rows = [
        Row("denoiser", "softmax", 1024, seconds=0.1234, peak_bytes=6_000_000_000),
        Row("decoder", "whole", 16384, note="out of memory"),
    ]
    text = gpu_section(rows, device="cpu", ran="Today.")
    assert text.startswith("## SDXL's shape on a GPU\n\nWritten by `hires bench gpu`")
    assert "| denoiser | softmax | 1024 px | 0.123 s | 6.0 GB |" in text
    assert "| decoder | whole | 16384 px | out of memory | - |" in text
    assert "dry run" in text


@pytest.mark.parametrize(
    ("sizes", "device", "shape", "message"),
    [
        ([1024], "cpu", "huge", 'shape "huge"'),
        ([1001], "cpu", "tiny", "1001 px is no multiple of 8"),
        ([0], "cpu", "tiny", "0 px"),
    ],
)
def test_wrong_requests(sizes: list[int], device: str, shape: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        measure(sizes, device, shape=shape)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said() -> None:
    with pytest.raises(RequestError, match="no CUDA device"):
        measure()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu() -> None:
    rows = measure([256], shape="tiny")
    assert [(row.part, row.way) for row in rows] == ways()
    assert [row.note for row in rows] == [""] * len(rows)
    assert json.dumps([row.seconds for row in rows])
