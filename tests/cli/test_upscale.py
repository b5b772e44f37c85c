"""`hires upscale`: any picture, any size, the built-in model; and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hirescli.output.metadata import read_recipe

FEW = ("--upscale-steps", 1, "--strength", 0.2, "-q")


def picture(path: str, width: int, height: int, mode: str = "RGB") -> Path:
    """A smooth picture, so that its colours survive enlarging."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 128 + 0 * x]
    Image.fromarray(np.stack(planes, -1).astype(np.uint8)).convert(mode).save(path)
    return Path(path)


def test_both_sides_are_doubled(hires: Callable) -> None:
    picture("in.png", 90, 61)
    ran = hires("upscale", "in.png", "-o", "out.tif", *FEW)
    assert (ran.code, ran.out) == (0, "out.tif\n")
    made = tifffile.imread("out.tif")
    assert made.shape == (128, 184, 3)  # sides that the model works at
    wanted = np.asarray(Image.open("in.png").resize((184, 128), Image.Resampling.BICUBIC))
    assert np.abs(made.astype(float) - wanted).mean() < 30  # the same picture, redrawn


@pytest.mark.parametrize(
    ("size", "shape"), [("200", (200, 136)), ("152x224", (224, 152)), ("144x208", (208, 144))]
)
def test_sizes(hires: Callable, size: str, shape: tuple[int, int]) -> None:
    picture("in.jpg", 80, 120)
    assert hires("upscale", "in.jpg", "--size", size, "-o", "out.png", *FEW).code == 0
    assert np.asarray(Image.open("out.png")).shape[:2] == shape


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_pictures_of_other_kinds(hires: Callable, mode: str) -> None:
    picture("in.tif", 64, 40, mode)
    assert hires("upscale", "in.tif", "-o", "out.png", *FEW).code == 0


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["--preset", "mine.toml"], (256, 176)),  # a square of a preset is its long side
        (["--preset", "mine.toml", "-W", 128, "-H", 88], (128, 88)),
        (["--preset", "mine.toml", "--size", 192], (192, 128)),
        (["--recipe", "both.json"], (192, 136)),
    ],
)
def test_the_last_size_said_counts(
    hires: Callable, words: list[object], size: tuple[int, int]
) -> None:
    picture("in.png", 90, 61)
    Path("mine.toml").write_text("[recipe]\nsize = 256\n")
    Path("both.json").write_text('{"width_px": 192, "height_px": 136}')
    ran = hires("upscale", "in.png", *words, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    recipe = json.loads(ran.out)["recipe"]
    assert (recipe["width_px"], recipe["height_px"]) == size


def test_a_stage_at_a_time_of_what_is_said_for_it(hires: Callable) -> None:
    picture("in.png", 32, 24)
    said = ("--size", 128, "--upscale-steps", "4,2", "--strength", "0.5,0.25")
    plan = json.loads(hires("upscale", "in.png", *said, "--dry-run", "--json").out)
    stages = plan["stages"]
    assert [stage["kind"] for stage in stages] == ["upscale", "upscale"]
    assert [(stage["steps"], stage["strength"]) for stage in stages] == [(4, 0.5), (2, 0.25)]


def test_the_recipe_names_the_picture_and_makes_it_again(hires: Callable) -> None:
    picture("in.png", 64, 40)
    assert hires("upscale", "in.png", "-p", "a beach", "-o", "one.png", *FEW).code == 0
    recipe = read_recipe(Path("one.png"))
    assert recipe["source"]["path"].endswith("in.png")
    assert len(recipe["source"]["sha256"]) == 64
    assert hires("generate", "--recipe", "one.png", "-o", "two.png", "-q").code == 0
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    picture("in.png", 64, 42)
    ran = hires("generate", "--recipe", "one.png", "-o", "three.png", "-q")
    assert ran.code == 2
    assert "SHA-256" in ran.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["missing.png"], ["missing.png"]),
        (["in.png", "--size", "24"], ["32"]),
        (["in.png", "--size", "400x120"], ["shape"]),
        (["in.png", "--size", "80x64"], ["90x61"]),
        (["in.png", "--strength", "0"], ["strength", "0"]),
        (["in.png", "--strength", "0.2,1.5"], ["1.5"]),
        (["in.png", "--upscale-steps", "0"], ["upscale_steps", "0"]),
        (["in.png", "--upscale-steps", "3,,2"], ["3,,2"]),
        (["in.png", "--init-image", "in.png"], ["--init-image"]),
    ],
)
def test_refused(hires: Callable, words: list[str], told: list[str]) -> None:
    picture("in.png", 90, 61)
    ran = hires("upscale", *words, "-o", "out.png")
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    for text in told:
        assert text in ran.err
    assert sorted(path.name for path in Path().iterdir()) == ["in.png"]
