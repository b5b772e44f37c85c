"""`hires bench`: what it refuses, and whole runs at tiny sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["foo"], "foo"),
        (["bands", "--sizes", "64"], "--sizes"),
        (["builtin", "--rows", "3"], "--rows"),
        (["vae", "--repeat", "3"], "--repeat"),
        (["bands", "--model", "vae"], "--model"),
        (["bands", "--size", "12x"], "12x"),
        (["bands", "--size", "68"], "68"),
        (["vae", "--dtype", "float16"], "float16"),
        (["vae", "--memory", "much"], "much"),
        (["vae", "--rows", "3", "--rows", "4"], "--rows"),
        (["vae", "--model", "missing"], "missing"),
        (["bands", "--rows", "0"], "--rows"),
        (["bands", "-o", "missing/table.md"], "missing"),
    ],
    ids=" ".join,
)
def test_refusals(hires: Callable, words: list[str], named: str) -> None:
    ran = hires("bench", *words)
    assert (ran.code, ran.out) == (2, "")
    assert named in ran.err


def test_a_folder_with_another_model_is_named(hires: Callable) -> None:
    Path("vae").mkdir()
    Path("vae/config.json").write_text(
        '{"_class_name": "AutoencoderTiny", "block_out_channels": [64, 64, 64, 64]}'
    )
    ran = hires("bench", "vae", "--model", "vae")
    assert ran.code == 2
    assert "AutoencoderTiny" in ran.err


def test_an_output_that_is_no_text_stays(hires: Callable) -> None:
    Path("picture.md").write_bytes(b"\x89PNG\xff")
    assert hires("bench", "bands", "-o", "picture.md").code == 2
    assert Path("picture.md").read_bytes() == b"\x89PNG\xff"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from hirescli.evaluation.components import SD_AUTOENCODER, randomised

    changes = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "sample_size": 64}
    randomised(AutoencoderKL(**(SD_AUTOENCODER | changes))).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.slow
def test_vae(hires: Callable, folder: Path) -> None:
    words = ["bench", "vae", "--model", folder, "--size", "96x80", "--threads", "1"]
    ran = hires(*words, "--json", "-o", "page.md")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert [each["way"] for each in facts["decodes"]] == ["plain", "banded", "tiled"]
    assert facts["decodes"][1]["max_error"] < 1e-4
    page = Path("page.md").read_text()
    assert page.startswith("# Benchmarks\n")
    assert "| 96x80 | in bands |" in page
    assert not list(Path().glob("*.partial"))


@pytest.mark.slow
def test_bands(hires: Callable) -> None:
    """The real decoder at the smallest size; both parts, errors within the tolerance."""
    ran = hires("bench", "bands", "--size", "32x24", "--rows", "3", "--repeat", "1", "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert [each["component"] for each in facts["components"]] == ["built-in UNet", "KL decoder"]
    for each in facts["components"]:
        assert each["error"] < 1e-4
        assert each["best_ratio"] > 0
        assert each["median_ratio"] > 0
        assert len(each["plain_seconds"]) == len(each["banded_seconds"])
        assert len(each["plain_seconds"]) in (1, 5)  # short calls are measured again


@pytest.mark.slow
def test_outputs_are_measured_one_by_one(hires: Callable) -> None:
    ran = hires("bench", "outputs", "--size", 128, "-o", "page.md", "--json")
    assert ran.code == 0, ran.err
    runs = {run["kind"]: run for run in json.loads(ran.out)["runs"]}
    assert len(runs) == 12
    assert all(run["seconds"] > 0 and run["peak_rss_bytes"] > 3e7 for run in runs.values())
    assert runs["tiff, no compression"]["file_bytes"] > 128 * 128 * 3
    assert "| 128x128 | avif |" in Path("page.md").read_text()


def test_outputs_are_squares(hires: Callable) -> None:
    ran = hires("bench", "outputs", "--size", "128x64")
    assert ran.code == 2
    assert "makes squares, not 128x64" in ran.err
