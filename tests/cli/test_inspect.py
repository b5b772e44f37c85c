"""`hires inspect`: tables, JSON, figures, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hirescli.training.scenes import render


@pytest.fixture
def picture(hires: Callable) -> Path:
    """A file in the folder that commands run in."""
    path = Path("sea.png")
    Image.fromarray(render(seed=2, size_px=256, family="sea").picture).save(path)
    return path


def test_a_table_and_a_figure(hires: Callable, picture: Path) -> None:
    ran = hires("inspect", picture)
    assert (ran.code, ran.err) == (0, "")
    for word in (
        "seams",
        "repetition",
        "colour drift",
        "sharpness",
        "fine",
        "sea.png.inspect.png",
    ):
        assert word in ran.out
    with Image.open("sea.png.inspect.png") as figure:
        figure.load()
        assert figure.width > 1000
        assert np.asarray(figure.convert("L")).std() > 20  # not a blank sheet
    assert {path.name for path in Path().iterdir()} == {"sea.png", "sea.png.inspect.png"}


def test_json(hires: Callable, picture: Path) -> None:
    Image.open(picture).resize((64, 64)).save("base.jpg", quality=95)
    ran = hires("inspect", picture, "--base", "base.jpg", "--json")
    assert (ran.code, ran.err) == (0, "")
    facts = json.loads(ran.out)
    assert facts["verdict"] in ("fine", "look", "bad")
    assert (facts["path"], facts["base"], facts["figure"]) == ("sea.png", "base.jpg", None)
    assert [each["measure"] for each in facts["findings"]] == [
        "seams", "repetition", "colour drift", "sharpness",
    ]  # fmt: skip
    assert {"period_px", "offset_px", "ratio", "z"} <= facts["seams"][0].keys()
    assert facts["drift"]["shift_delta_e"] < 2
    assert [level["width_px"] for level in facts["levels"]] == [256, 128, 64]
    assert {path.name for path in Path().iterdir()} == {"sea.png", "base.jpg"}
    named = json.loads(hires("inspect", picture, "--figure", "a.png", "--json").out)
    assert named["figure"] == "a.png"
    assert Path("a.png").exists()


def test_several_files_are_compared(hires: Callable, picture: Path) -> None:
    Image.open(picture).resize((512, 512)).save("soft.png")
    ran = hires("inspect", picture, "soft.png", "--no-figure")
    assert ran.code == 0
    assert "256x256" in ran.out
    assert "512x512" in ran.out
    lines = hires("inspect", picture, "soft.png", "--no-figure", "--json").out.splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["sea.png", "soft.png"]


def test_a_figure_is_drawn_again_and_nothing_else_is_replaced(
    hires: Callable, picture: Path
) -> None:
    assert hires("inspect", picture, "--figure", "a.png").code == 0
    assert hires("inspect", picture, "--figure", "a.png").code == 0
    before = picture.read_bytes()
    ran = hires("inspect", picture, "--figure", picture)
    assert ran.code == 2
    assert "no chart" in ran.err
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["gone.png"], "gone.png"),
        (["."], "folder"),
        (["text.tif"], "text.tif is no"),
        (["cut.png"], "cut.png is truncated"),
        (["cut.tif"], "cut.tif is"),
        (["hurt.png"], "hurt.png is damaged"),
        (["sea.png", "--figure", "a.jpg"], ".png"),
        (["sea.png", "--figure", "gone/a.png"], "gone"),
        (["sea.png", "--figure", "a.png", "--no-figure"], "exclude"),
        (["sea.png", "cut.png", "--figure", "a.png"], "--figure"),
        (["sea.png", "cut.png", "--base", "sea.png"], "--base"),
        (["sea.png", "--base", "text.tif"], "text.tif"),
        (["sea.png", "--base", "wide.png"], "wide.png has 200x100"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(hires: Callable, picture: Path, words: list[str], named: str) -> None:
    Path("text.tif").write_text("not a picture")
    Path("cut.png").write_bytes(picture.read_bytes()[:-2000])
    Image.open(picture).save("whole.tif")
    Path("cut.tif").write_bytes(Path("whole.tif").read_bytes()[:-5000])
    Image.new("RGB", (200, 100)).save("wide.png")
    packed = bytearray(picture.read_bytes())
    packed[len(packed) // 2] ^= 1  # amid the pixels
    Path("hurt.png").write_bytes(packed)
    before = sorted(Path().iterdir())
    ran = hires("inspect", *words)
    assert (ran.code, ran.out) == (2, "")
    assert named in ran.err
    assert "Traceback" not in ran.err
    assert sorted(Path().iterdir()) == before


def test_names_do_not_steer_the_terminal(hires: Callable, picture: Path) -> None:
    odd = Path("a\x1b[31m$x_1$ \u4e2d.png")
    picture.rename(odd)
    ran = hires("inspect", odd)
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    assert "\x1b" not in hires("inspect", odd, "--no-figure", "--json").out
