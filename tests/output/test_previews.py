"""Previews: small, whole, beside the output, one for each stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import picture
from PIL import Image

from hirescli.errors import RunError
from hirescli.evaluation.inspection.base import base_of
from hirescli.output.metadata import read_recipe
from hirescli.output.preview import preview_path, write_preview
from hirescli.output.spool import Spool
from hirescli.recipe import Recipe


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("size", [(2100, 700), (300, 2048), (64, 64), (1025, 1)])
def test_a_preview_shows_the_spool(tmp_path: Path, bits: int, size: tuple[int, int]) -> None:
    pixels = picture(*size)
    spool = tmp_path / "stage-0.spool.tif"
    with Spool.create(spool, width_px=size[0], height_px=size[1], bits=bits) as made:
        made.write_rows(0, pixels if bits == 8 else pixels.astype(np.uint16) * 257)
    path = write_preview(spool, tmp_path / "dunes.tif", 2)
    assert path.name == "dunes.tif.stage-2.jpg"
    with Image.open(path) as image:
        assert max(image.size) == min(1024, max(size))
        small = np.asarray(image).astype(float)
    assert np.abs(small.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 3
    assert sorted(tmp_path.iterdir()) == sorted([spool, path])


def test_a_link_in_its_place_is_replaced(tmp_path: Path) -> None:
    spool, other = tmp_path / "s.tif", tmp_path / "other.jpg"
    Spool.create(spool, width_px=64, height_px=64).close()
    other.write_text("mine")
    for name in ("a.tif.stage-0.jpg", "a.tif.stage-0.jpg.partial"):
        (tmp_path / name).symlink_to(other)
    with pytest.raises(RunError, match="--overwrite"):
        write_preview(spool, tmp_path / "a.tif", 0)
    write_preview(spool, tmp_path / "a.tif", 0, overwrite=True)
    assert other.read_text() == "mine"
    assert not preview_path(tmp_path / "a.tif", 0).is_symlink()


def test_it_says_to_which_picture_it_belongs(tmp_path: Path) -> None:
    spool, output = tmp_path / "s.tif", tmp_path / "a.tif"
    with Spool.create(spool, width_px=64, height_px=64) as made:
        made.write_rows(0, picture(64, 64))
    recipe = Recipe.from_fragments({"prompt": "dunes " * 900, "size": "64", "seed": 3})
    path = write_preview(spool, output, 0, recipe=recipe)
    assert read_recipe(path)["seed"] == 3
    with Image.open(path) as image:
        assert np.abs(np.asarray(image).astype(int) - picture(64, 64)).mean() < 12
    shutil.copy(path, output)
    assert base_of(output) == path
    write_preview(spool, output, 0, recipe=recipe.model_copy(update={"seed": 4}))  # replaces ours
    assert base_of(output) is None
    silent = write_preview(spool, output, 0, recipe=recipe.model_copy(update={"metadata": False}))
    assert b"dunes" not in silent.read_bytes()
    assert base_of(output) == path
    path.write_text("mine")
    with pytest.raises(RunError, match="--overwrite"):
        write_preview(spool, output, 0, recipe=recipe)
    assert path.read_text() == "mine"


def test_a_preview_that_cannot_be_written(tmp_path: Path) -> None:
    spool = tmp_path / "s.tif"
    Spool.create(spool, width_px=64, height_px=64).close()
    with pytest.raises(RunError, match="stage-0"):
        write_preview(spool, tmp_path / "missing" / "a.tif", 0)


@pytest.mark.slow
def test_every_stage_leaves_one(hires: Callable) -> None:
    request = ["-p", "dunes", "--size", "256", "--steps", "1", "--upscale-steps", "1"]
    ran = hires("generate", *request, "-o", "d.png", "--preview", "--json")
    assert ran.code == 0, ran.err
    told = [json.loads(line) for line in ran.out.splitlines()]
    written = [each for each in told if each["event"] == "preview_written"]
    done = [each["index"] for each in told if each["event"] == "stage_done"]
    assert [each["index"] for each in written] == done == [0, 1, 2]
    assert {path.name for path in Path().iterdir()} == {
        "d.png", "d.png.stage-0.jpg", "d.png.stage-1.jpg", "d.png.stage-2.jpg",
    }  # fmt: skip
    with Image.open("d.png") as final, Image.open("d.png.stage-2.jpg") as last:
        assert last.size == final.size
        difference = np.asarray(final).astype(float) - np.asarray(last)
    assert np.abs(difference).mean() < 6
