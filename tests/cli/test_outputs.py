"""Options of the output in `generate` and `plan`: several files, 16 bits, paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

import hirescli
from hirescli.errors import RequestError
from hirescli.output.metadata import inspect

P = ("-p", "mountains", "--size", 64, "--steps", 1)


def test_print_says_pixels_and_paper(hires: Callable) -> None:
    ran = hires("plan", "-p", "mountains", "--print", "20x10cm@200")
    assert ran.code == 0
    assert "1574.8x787.4 px; made are 1576x792 px" in ran.err
    assert "mountains-seed0.print.tif (print, 1576x792 px" in ran.out
    assert "print     20.0x10.1 cm (7.9x4.0 in) at 200 dpi" in ran.out
    ran = hires("plan", "-p", "mountains", "--print", "20x10cm@200", "-o", "a.png", "--json")
    said = json.loads(ran.out)
    assert (said["recipe"]["format"], said["recipe"]["dpi"]) == ("png", 200)
    assert said["print"]["width_cm"] == pytest.approx(20.015, abs=0.001)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--print", "20x10cm@200", "--size", 64), "leave --size out"),
        (("--print", "20x10cm@200", "-W", 64, "--dpi", 100), "leave --width and --dpi out"),
        (("--print", "20x10"), "write it like 60x40cm@300"),
        (("--print", "400x300cm@300"), "print cannot hold"),
        (("--size", 64, "--also", "folder/"), "is no file name"),
        (("--size", 64, "--also", "a.jpg", "--also", "a.jpg"), "two files would be a.jpg"),
        (("--size", 16384, "--also", "a.webp"), "16383"),
        (("--size", 64, "-o", "a.png", "--also", "a.png"), "two files would be a.png"),
    ],
)
def test_requests_that_are_refused(hires: Callable, words: tuple[object, ...], said: str) -> None:
    ran = hires("generate", "-p", "mountains", *words)
    assert ran.code == 2
    assert said in ran.err
    assert not list(Path().iterdir())


def test_a_batch_has_no_further_files(hires: Callable) -> None:
    Path("jobs.txt").write_text("sea\n")
    assert hires("batch", "jobs.txt", "--also", "a.jpg").code == 2


@pytest.mark.slow
def test_several_files_of_16_and_8_bits(hires: Callable) -> None:
    words = ("--bits", 16, "-o", "a.tif", "--also", "a-{seed}.png", "--also", "a.jpg", "-q")
    ran = hires("generate", *P, "--seed", 3, *words, "--json")
    assert ran.code == 0, ran.err
    (image,) = json.loads(ran.out.splitlines()[-1])["images"]
    assert image["also"] == ["a-3.png", "a.jpg"]
    deep = imagecodecs.imread("a-3.png")
    assert deep.dtype == np.uint16
    assert np.array_equal(imagecodecs.imread("a.tif", codec="tiff")[..., :3].squeeze(), deep)
    assert np.unique(deep % 257).size > 200  # no 8 bits were in between
    assert inspect(Path("a.jpg")).recipe["bits"] == 8
    again = hires("generate", *P, "--seed", 3, *words)
    assert (again.code, again.out) == (0, "a.tif\n")
    assert "is finished with this recipe; nothing to do" in again.err
    # Of 8 bits straight from the floats, and rounded from 16.
    assert hires("generate", *P, "--seed", 3, "-o", "b.png", "-q").code == 0
    difference = imagecodecs.imread("b.png").astype(int) - np.rint(deep / 257)
    assert np.abs(difference).max() <= 1
    Path("a.jpg").unlink()
    ran = hires("generate", *P, "--seed", 3, *words)
    assert ran.code == 2
    assert "make it with: hires export a.tif --to a.jpg" in ran.err


@pytest.mark.slow
def test_tiles_and_further_files_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = hirescli.Recipe(prompt="mountains", width_px=64, height_px=64, steps=1, quality=70)
    made = hirescli.generate(recipe, "a.iiif", also=["a.png"])
    assert made.also == (Path("a.png"),)
    assert {path.name for path in tmp_path.iterdir()} == {"a.iiif", "a.png"}
    again = hirescli.generate(recipe, "a.iiif", also=["a.png"])
    assert (again.sha256, again.seconds) == (made.sha256, 0)
    with pytest.raises(RequestError, match="exists"):
        hirescli.generate(recipe.model_copy(update={"seed": 1}), "a.iiif")
    replaced = hirescli.generate(recipe.model_copy(update={"seed": 1}), "a.iiif", overwrite=True)
    assert replaced.sha256 != made.sha256
    assert {path.name for path in tmp_path.iterdir()} == {"a.iiif", "a.png"}
