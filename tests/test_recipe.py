import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hirescli.errors import ConfigError
from hirescli.recipe import CONSEQUENCES, Recipe, fragment_faults, read_recipe_file


def recipe(**choices: Any) -> Recipe:
    return Recipe.from_fragments({"prompt": "a sea", "size": 1024} | choices)


def test_size_stands_for_width_and_height() -> None:
    assert recipe(size="2048x1024") == recipe(size=None, width_px=2048, height_px=1024)
    assert Recipe(prompt="a sea", size=1024) == recipe()  # type: ignore[call-arg]


def test_later_fragments_win() -> None:
    merged = Recipe.from_fragments(
        {"prompt": "a", "size": 1024, "steps": 10}, {"width_px": 2048}, {"steps": None, "seed": 3}
    )
    assert (merged.width_px, merged.height_px, merged.steps, merged.seed) == (2048, 1024, 10, 3)
    turned = Recipe.from_fragments({"prompt": "a", "width_px": 8, "height_px": 9}, {"size": 64})
    assert (turned.width_px, turned.height_px) == (64, 64)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"steps": "30"}, 'steps: "30"'),
        ({"steps": 0}, "steps: 0"),
        ({"steps": True}, "steps: true"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**63}, "seed: 9223372036854775808"),
        ({"guidance_scale": float("nan")}, "guidance_scale: NaN"),
        ({"guidance_scale": float("inf")}, "guidance_scale: Infinity"),
        ({"guidance_scale": 0.5}, "guidance_scale: 0.5"),
        ({"strengths": []}, "strengths: is empty"),
        ({"strengths": [0.4, 0]}, "strengths.1: 0"),
        ({"strengths": [0.4, 1.5]}, "strengths.1: 1.5"),
        ({"tile_px": 100}, "tile_px: 100"),
        ({"format": "bmp"}, 'format: "bmp"'),
        ({"bits": 12}, "bits: 12"),
        ({"quality": 101}, "quality: 101"),
        ({"dpi": 0}, "dpi: 0"),
        ({"colour": "red"}, "colour: is no choice of a recipe"),
        ({"width_px": 64}, "size: stands beside width_px"),
        ({"size": "1e4"}, 'size "1e4"'),
        ({"size": 0}, 'size "0"'),
        ({"size": 1.5}, "size: 1.5"),
        ({"size": None}, "width_px: is missing"),
    ],
)
def test_wrong_choices_are_named(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(**choices)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_faults_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(steps="30", seed=-1, colour="red", prompt="a\0b", size="12x")
    assert len(caught.value.faults) == 5


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("\ufeffa sea", "a sea"),
        ("a sea\r\nat night\n", "a sea at night"),
        ("🌊 بحر", "🌊 بحر"),
        ("sea " * 10_000, ("sea " * 10_000).strip()),
    ],
)
def test_prompts_are_cleaned(prompt: str, cleaned: str) -> None:
    assert recipe(prompt=prompt).prompt == cleaned


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "is empty"),
        (" \r\n\ufeff", "is empty"),
        ("a\0b", "U+0000"),
        ("a\x1b[2Jb", "U+001B"),
        ("a\x7fb", "U+007F"),
        ("a\x80b", "U+0080"),
        ("a\x9b2Jb", "U+009B"),
        ("a\x9fb", "U+009F"),
        ("a\udc80", "UTF-8"),
    ],
)
def test_prompts_that_cannot_be_kept_are_refused(prompt: str, said: str) -> None:
    with pytest.raises(ConfigError, match="prompt: ") as caught:
        recipe(prompt=prompt)
    assert said in str(caught.value)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError):
        recipe().seed = 4  # type: ignore[misc]


@given(
    prompt=st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1),
    seed=st.integers(0, 2**63 - 1),
    strengths=st.none() | st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=4),
    dpi=st.floats(1, 10_000),
)
def test_json_keeps_everything(
    prompt: str, seed: int, strengths: list[float] | None, dpi: float
) -> None:
    one = recipe(prompt="x" + prompt, seed=seed, strengths=strengths, dpi=dpi)
    again = Recipe.from_json(one.to_json())
    assert again == one
    assert again.hash == one.hash


def test_the_hash_sees_every_choice_but_no_consequence() -> None:
    one = recipe()
    assert len(one.hash) == 64
    assert one.hash != recipe(seed=1).hash
    assert one.hash != recipe(dpi=72).hash
    assert one.hash != recipe(threads=2).hash
    for key in CONSEQUENCES:
        assert one.hash == one.model_copy(update={key: 48}).hash


def test_the_hash_does_not_change_between_versions() -> None:
    # The same recipe must be found finished by a later version: a new field needs a new value
    # here, on purpose.
    assert recipe().hash == "96248b57f51e76a2d1a798990b405dfb9f8b9755fd6036d7c1dc699a6378ce44"


def test_a_consequence_is_shown_but_not_read_back() -> None:
    run = recipe().model_copy(update={"truncated_to_tokens": 48})
    assert json.loads(run.to_json())["truncated_to_tokens"] == 48
    assert Recipe.from_json(run.to_json()) == recipe()


def test_faults_of_a_fragment_leave_missing_keys_alone() -> None:
    assert fragment_faults({"steps": 10}) == []
    assert [key for key, _ in fragment_faults({"steps": 0, "size": "7x"})] == ["size", "steps"]


def test_a_recipe_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("\ufeff" + recipe(seed=5).to_json(indent=2), encoding="utf-8")
    assert Recipe.from_fragments(read_recipe_file(path)).seed == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JSON"),
        (b"[1]", "is no JSON object"),
        (b'{"seed": 1, "seed": 2}', "seed: stands there twice"),
        (b'{"dpi": NaN}', "dpi: NaN"),
        (b'{"seed": "1"}', 'seed: "1"'),
        (b'{"prompt": "a\xff"}', "is no UTF-8 text (byte 13)"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"\x89PNG\r\n\x1a\n", "is no UTF-8 text (byte 0)"),
    ],
)
def test_a_faulty_recipe_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_recipe_file(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_missing_recipe_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_recipe_file(tmp_path / "none.json")
