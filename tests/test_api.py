"""The public functions, small."""

from __future__ import annotations

from pathlib import Path

import pytest

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
def test_finished_is_left_and_the_suffix_chooses(tmp_path: Path) -> None:
    output = tmp_path / "a.png"
    recipe = Recipe.from_json(SMALL.to_json())  # says every choice, the default format too
    made = hirescli.generate(recipe, output)
    assert (made.recipe.format, made.seconds > 0) == ("png", True)
    before = output.stat()
    again = hirescli.generate(recipe, output)
    assert (again.path, again.sha256, again.seconds) == (output, made.sha256, 0.0)
    assert output.stat().st_mtime_ns == before.st_mtime_ns
