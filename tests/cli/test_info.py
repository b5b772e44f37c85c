"""`hires info`: what a file is, beside its recipe, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from hirescli.output.finalise import finalise
from hirescli.output.spool import Spool
from hirescli.recipe import Recipe, read_recipe_file

PIXELS = np.random.default_rng(5).integers(0, 256, (200, 300, 3), dtype=np.uint8)


def ours(name: str, **choices: Any) -> Recipe:
    recipe = Recipe.from_fragments({"prompt": "sea", "size": "300x200", "dpi": 254.0}, choices)
    with Spool.create(Path("s"), width_px=300, height_px=200, bits=recipe.bits) as spool:
        spool.write_rows(0, PIXELS.astype("u2") * 257 if recipe.bits == 16 else PIXELS)
    finalise(Path("s"), Path(name), recipe=recipe)
    Path("s").unlink()
    return recipe


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a.webp", "a.avif"])
def test_pictures_without_any_text(hires: Callable, name: str) -> None:
    Image.fromarray(PIXELS).save(name, dpi=(100, 100))
    ran = hires("info", name)
    assert ran.code == 0, ran.err
    assert "300x200" in ran.out
    assert "it holds no recipe" in ran.out
    said = json.loads(hires("info", name, "--json").out)
    kind = {".tif": "tiff", ".jpg": "jpeg"}.get(Path(name).suffix, name[2:])
    about = said["file"]
    assert list(said) == ["file"]
    assert (about["format"], about["bits"], about["levels"]) == (kind, 8, 1)
    assert (about["width_px"], about["height_px"]) == (300, 200)
    assert about["bytes"] == Path(name).stat().st_size
    if kind in ("tiff", "png", "jpeg"):
        assert about["dpi"] == pytest.approx(100, abs=0.1)
        assert "7.6x5.1 cm (3.0x2.0 in) at 100 dpi" in ran.out


@pytest.mark.parametrize(
    ("name", "choices", "bits", "levels"),
    [
        ("a.tif", {"bits": 16, "tile_px": 64}, 16, 4),
        ("a.tif", {"compression": "zstd"}, 8, 1),
        ("a.png", {"format": "png"}, 8, 1),
        ("a.dzi", {"format": "tiles"}, None, 10),
    ],
)
def test_ours_say_it_above_the_recipe(
    hires: Callable, name: str, choices: dict[str, Any], bits: int | None, levels: int
) -> None:
    recipe = ours(name, **choices)
    ran = hires("info", name)
    assert ran.code == 0, ran.err
    about, made = ran.out.split("\n\n")
    assert "300x200" in about
    assert "prompt" in made
    shown = hires("info", name, "--json").out
    said = json.loads(shown)
    assert (said["file"].get("bits"), said["file"]["levels"]) == (bits, levels)
    Path("r.json").write_text(shown)
    assert Recipe.from_fragments(read_recipe_file(Path("r.json"))) == recipe


def damaged(name: str) -> None:
    ours("whole.tif", compression="none", pyramid="none")
    data = Path("whole.tif").read_bytes()
    tifffile.imwrite("classic.tif", PIXELS, photometric="rgb")
    classic = Path("classic.tif").read_bytes()
    files = {
        "empty.tif": b"", "empty.json": b"", "cut.tif": data[:-100], "head.tif": data[:3000],
        "start.tif": data[:16], "classic-cut.tif": classic[:-1000], "signature.tif": classic[:8],
        "text.tif": b"hello",
    }  # fmt: skip
    Path(name).write_bytes(files[name])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty.tif", "is empty (0 bytes)"),
        ("empty.json", "is empty (0 bytes)"),
        ("cut.tif", "is truncated"),
        ("head.tif", "is truncated"),
        ("start.tif", "is truncated"),
        ("classic-cut.tif", "is truncated"),
        ("signature.tif", "is truncated"),
        ("text.tif", "is no "),
    ],
)
def test_faults_are_named(hires: Callable, name: str, said: str) -> None:
    damaged(name)
    ran = hires("info", name)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    ran = hires("info", name, "--json")
    told = json.loads(ran.out)
    assert (told["event"], told["exit_code"]) == ("error", 2)
    assert said in told["message"]


def test_export_says_what_it_does_and_may_be_quiet(hires: Callable) -> None:
    ours("a.tif")
    ran = hires("export", "a.tif", "--to", "b.png", "--to", "c.jpg")
    assert ran.out == "b.png\nc.jpg\n"
    assert "making the png file" in ran.err
    assert "wrote c.jpg" in ran.err
    for flag in ("-q", "--json"):
        ran = hires("export", "a.tif", "--to", "b.png", "--overwrite", flag)
        assert (ran.code, ran.err) == (0, "")
    missing = json.loads(hires("export", "none.tif", "--to", "b.png", "--json").out)
    assert missing["event"] == "error"
