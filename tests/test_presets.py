from pathlib import Path
from typing import Any

import pytest

from hirescli import presets
from hirescli.errors import ConfigError, RequestError
from hirescli.models.registry import find_card
from hirescli.planning.machine import Device, Machine
from hirescli.planning.plan import make_plan
from hirescli.recipe import Recipe

SIZES = {
    "draft": (1024, 1024),
    "panorama-2x1": (8192, 4096),
    "poster-16k": (16384, 16384),
    "sdxl-16k": (16384, 16384),
    "sdxl-4k-skip": (4096, 4096),
    "flux-4k": (4096, 4096),
    "flux-8k": (8192, 8192),
    "flux-schnell-4k": (4096, 4096),
    "sd35-4k": (4096, 4096),
    "wallpaper-4k": (3840, 2160),
}


def test_the_shipped_presets() -> None:
    assert presets.names() == sorted(SIZES)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_a_shipped_preset_can_be_planned(name: str) -> None:
    preset = presets.load(name)
    assert preset.description
    recipe = Recipe.from_fragments(preset.fragment, {"prompt": "a sea"})
    assert (recipe.width_px, recipe.height_px) == SIZES[name]
    card = find_card(recipe.model)
    assert recipe.model == "builtin" or name.startswith(recipe.model.partition("-")[0])
    gpu = () if recipe.model == "builtin" else (Device("a card", 24 * 10**9),)
    machine = Machine(cores=2, memory_bytes=32 * 10**9, devices=gpu)
    make_plan(recipe, card, machine=machine)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean poster-16k"):
        presets.load("poster16k")


def test_flags_win_over_a_preset() -> None:
    recipe = Recipe.from_fragments(
        presets.load("draft").fragment, {"prompt": "a sea", "size": "640x480", "steps": 3}
    )
    assert (recipe.width_px, recipe.steps, recipe.upscale_steps) == (640, 3, (2,))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[recipe]\ncolour = 3\n", ["line 2, recipe.colour: is no choice"]),
        (b"[recipe]\nsteps = 3\nsteps = 4\n", ["line 3: steps stands already on line 2"]),
        (b"[recipe]\ndpi = nan\n", ["line 2, recipe.dpi: NaN"]),
        (b'[recipe]\nsteps = "30"\n', ['line 2, recipe.steps: "30"']),
        (b'[recipe]\nprompt = "a\0b"\n', ["line 2: holds a NUL byte"]),
        (b'[recipe]\nprompt = "\\u0000"\n', ["line 2, recipe.prompt: holds the control"]),
        (b'# \xff\n[recipe]\nprompt = "a"\n', ["line 1: is not valid UTF-8"]),
        (b'[recipe]\nsize = "1e4"\n', ['line 2, recipe.size: size "1e4"']),
        (b"size = 1024\n", ["line 1, size: is unknown"]),
        (b"description = 3\n", ["line 1, description: must be text"]),
        (b"recipe = 3\n", ["line 1, recipe: must be a table"]),
        (b"[recipe]\nsteps = \n", ["line 2: Invalid value"]),
        (b"[recipe]\nsteps = " + b"1" * 5000, ["5000 digits"]),
        (b"[recipe]\nstrengths = [0.4, 7.0]\n", ["line 2, recipe.strengths.1: 7.0"]),
    ],
)
def test_faults_are_named(tmp_path: Path, content: bytes, said: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    faults = presets.validate(path)
    assert len(faults) == len(said), faults
    for fault, words in zip(faults, said, strict=True):
        assert words in fault
    with pytest.raises(ConfigError) as caught:
        presets.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_faults_come_together(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(
        b"# \xff\n[recipe]\nsteps = 3\nsteps = 4\ndpi = nan\ncolour = 1\n"
        b'seed = "1"\nprompt = "a\0b"\nextra = 0\n'
    )
    text = "\n".join(presets.validate(path))
    for words in ("UTF-8", "steps stands", "dpi: NaN", "colour", 'seed: "1"', "NUL", "extra"):
        assert words in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        presets.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        presets.load("a\0b.toml")


def test_key_like_lines_in_long_text_are_no_doubled_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[recipe]\nsteps = 3\nprompt = """a\nsteps = 4\n"""\n')
    assert presets.validate(path) == []


@pytest.mark.parametrize(
    "fragment",
    [
        {"size": "640x480", "steps": 3, "seed": None},
        {"prompt": 'say "\\" 🌊', "metadata": False, "strengths": (0.5, 0.25)},
        {"guidance_scale": 1e1, "dpi": 72.5},
        {},
    ],
)
def test_a_new_preset_is_read_back(tmp_path: Path, fragment: dict[str, Any]) -> None:
    path = tmp_path / "mine.toml"
    presets.new(path, fragment, description='my "own"')
    preset = presets.load(path)
    assert (preset.name, preset.description) == ("mine", 'my "own"')
    required = {"prompt": "x", "size": 64}
    wanted = Recipe.from_fragments(required, fragment)
    assert Recipe.from_fragments(required, preset.fragment) == wanted
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.toml"]


def test_new_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("# kept")
    with pytest.raises(RequestError, match="exists"):
        presets.new(path, {})
    assert path.read_text() == "# kept"
    with pytest.raises(RequestError, match=r"must end in \.toml"):
        presets.new(tmp_path / "mine", {})
    with pytest.raises(ConfigError, match="steps: 0"):
        presets.new(tmp_path / "other.toml", {"steps": 0})
    with pytest.raises(RequestError, match="cannot be written"):
        presets.new(tmp_path / "nowhere" / "mine.toml", {})
