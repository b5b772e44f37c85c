"""presets, info and doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def test_presets_list(hires: Callable) -> None:
    ran = hires("presets", "list")
    for name in ("draft", "panorama-2x1", "poster-16k", "wallpaper-4k"):
        assert name in ran.out
    listed = json.loads(hires("presets", "list", "--json").out)
    assert all(preset["description"] for preset in listed)


def test_presets_show(hires: Callable) -> None:
    assert "16384" in hires("presets", "show", "poster-16k").out
    assert json.loads(hires("presets", "show", "poster-16k", "--json").out)["size"] == 16384


def test_presets_new_writes_what_validate_accepts(hires: Callable) -> None:
    ran = hires("presets", "new", "own.toml", "--size", "1024x512", "--steps", 7, "-s", 3)
    assert (ran.code, ran.out) == (0, "own.toml\n")
    assert hires("presets", "validate", "own.toml").code == 0
    shown = json.loads(hires("presets", "show", "own.toml", "--json").out)
    assert (shown["size"], shown["steps"], shown["seed"]) == ("1024x512", 7, 3)


def test_presets_new_starts_from_another(hires: Callable) -> None:
    words = ("--preset", "poster-16k", "-W", 512, "-H", 256)
    assert hires("presets", "new", "own.toml", *words).code == 0
    shown = json.loads(hires("presets", "show", "own.toml", "--json").out)
    assert (shown["width_px"], shown["height_px"], shown["dpi"]) == (512, 256, 300)
    assert "size" not in shown


def test_presets_new_refuses(hires: Callable) -> None:
    assert hires("presets", "new", "own.toml", "--steps", 0).code == 2
    assert hires("presets", "new", "own.toml", "--output", "x.tif").code == 2
    assert not Path("own.toml").exists()
    Path("own.toml").write_text("mine")
    assert hires("presets", "new", "own.toml", "--steps", 5).code == 2
    assert Path("own.toml").read_text() == "mine"


def test_validate_tells_all_files(hires: Callable) -> None:
    Path("a.toml").write_text("[recipe]\nsteps = 0\n")
    Path("b.toml").write_text("[recipe]\nstepz = 1\n")
    ran = hires("presets", "validate", "a.toml", "b.toml")
    assert ran.code == 2
    assert "a.toml" in ran.err
    assert "stepz" in ran.err


def test_info_of_a_recipe(hires: Callable) -> None:
    Path("a.json").write_text('{"prompt": "sea", "width_px": 512, "height_px": 256}')
    assert "sea" in hires("info", "a.json").out
    assert json.loads(hires("info", "a.json", "--json").out)["width_px"] == 512


def test_info_shows_what_would_steer_the_terminal(hires: Callable) -> None:
    text = '{"prompt": "sea", "model": "\\u001b]0;x\\u009b", "width_px": 512, "height_px": 256}'
    Path("a.json").write_text(text)
    assert "\\x1b]0;x\\x9b" in hires("info", "a.json").out
    shown = hires("info", "a.json", "--json").out
    assert "\x9b" not in shown
    assert json.loads(shown)["model"] == "\x1b]0;x\x9b"


def test_info_of_an_image_with_an_empty_recipe(hires: Callable) -> None:
    from PIL import Image, PngImagePlugin

    texts = PngImagePlugin.PngInfo()
    texts.add_text("hires_recipe", "{}")
    texts.add_text("hires", '{"hires_recipe": {}}')
    Image.new("RGB", (8, 8)).save("a.png", pnginfo=texts)
    ran = hires("info", "a.png")
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_doctor(hires: Callable) -> None:
    ran = hires("doctor")
    assert ran.code == 0
    for text in ("cores", "memory", "disk", "libvips", "builtin", "16384x16384"):
        assert text in ran.out
    facts = json.loads(hires("doctor", "--json").out)
    assert facts["cores"] >= 1
    assert facts["packages"]["torch"]
    assert [size["side_px"] for size in facts["sizes"]] == [1024, 2048, 4096, 8192, 16384]


def test_bench_refuses_before_it_runs(hires: Callable) -> None:
    assert hires("bench", "foo").code == 2
    assert hires("bench", "builtin", "--sizes", "12x").code == 2
    assert hires("bench", "builtin", "-o", "missing/table.md").code == 2
