"""The public functions, small."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import hirescli
from hirescli.errors import ConfigError, RequestError
from hirescli.recipe import Recipe

SMALL = Recipe(prompt="sea", width_px=64, height_px=64, steps=1)


def test_copies_are_checked() -> None:
    with pytest.raises(ConfigError, match="steps"):
        hirescli.plan(SMALL.model_copy(update={"steps": 0}))


def test_messages_name_the_argument(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("mine")
    with pytest.raises(RequestError, match="overwrite=True"):
        hirescli.generate(SMALL, tmp_path / "a.tif")
    with pytest.raises(RequestError, match=r"memory=\.\.\."):
        hirescli.generate(SMALL, tmp_path / "b.tif", memory="1MB")


@pytest.mark.slow
def test_a_picture_is_enlarged(tmp_path: Path) -> None:
    Image.effect_noise((90, 61), 50).convert("RGB").save(tmp_path / "in.png")
    made = hirescli.upscale(
        tmp_path / "in.png", tmp_path / "out.png", upscale_steps=1, strengths=[0.2]
    )
    assert (made.recipe.width_px, made.recipe.height_px) == (184, 128)
    with pytest.raises(RequestError, match="90x61"):
        hirescli.upscale(tmp_path / "in.png", size="80x64")


@pytest.mark.slow
def test_finished_is_left_and_the_suffix_chooses(tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    recipe = Recipe.from_json(SMALL.to_json())  # says every choice, the default format too
    made = hirescli.generate(recipe, output)
    assert (made.recipe.format, made.seconds > 0) == ("png", True)
    before = output.stat()
    again = hirescli.generate(recipe, output)
    assert (again.path, again.sha256, again.seconds) == (output, made.sha256, 0.0)
    assert output.stat().st_mtime_ns == before.st_mtime_ns
