"""Choices without effect are warned of, prompts are matched, and disks hold several images."""

from pathlib import Path
from typing import Any

import pytest

from hirescli.errors import ConfigError, RequestError
from hirescli.models.registry import find_card
from hirescli.planning.cascade import choices_without_effect, stages
from hirescli.planning.machine import Machine
from hirescli.planning.output_cost import output_bytes
from hirescli.planning.plan import Plan, check_disk_together, make_plan
from hirescli.recipe import Recipe

CARD = find_card("builtin")
MACHINE = Machine(cores=2, memory_bytes=16 * 10**9, disk_free_bytes=lambda _: 10**12)


def plan(**choices: Any) -> Plan:
    recipe = Recipe.from_fragments({"prompt": "a mountain", "size": 1024} | choices)
    return make_plan(recipe, CARD, machine=MACHINE)


@pytest.mark.parametrize(
    "prompt", ["galaxies", "Skies at dusk", "two nebulae", "waves", "northern lights", "Forests"]
)
def test_plurals_are_known(prompt: str) -> None:
    assert CARD.foreign_prompt_warning(prompt) is None


@pytest.mark.parametrize("prompt", ["wolves", "a seat", "northern wolf", "light"])
def test_foreign_words_stay_foreign(prompt: str) -> None:
    warning = CARD.foreign_prompt_warning(prompt)
    assert warning is not None
    assert "for other subjects choose a Stable Diffusion model with --model" in warning


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        (
            {"negative_prompt": "fog", "guidance_scale": 1.0, "upscale_guidance_scale": 1.0},
            "negative prompt has no effect",
        ),
        ({"size": 64, "strengths": [0.7]}, "--strengths has no effect"),
        ({"size": 64, "upscale_steps": 9}, "--upscale-steps has no effect"),
        ({"size": 64, "upscale_guidance_scale": 3.0}, "--upscale-guidance-scale has no effect"),
        ({"size": 128, "strengths": [0.5, 0.4]}, "2 strengths for 1 doublings"),
        ({"size": 128, "upscale_guidance_scale": [3, 2]}, "2 --upscale-guidance-scale for 1"),
    ],
)
def test_choices_without_effect_are_warned_of(choices: dict[str, Any], said: str) -> None:
    (warning,) = plan(**choices).warnings
    assert said in warning


@pytest.mark.parametrize(
    "choices",
    [
        {"negative_prompt": "fog"},
        {"negative_prompt": "fog", "guidance_scale": 1.0, "upscale_guidance_scale": 2.0},
        {"strengths": [0.5, 0.4, 0.3]},
        {"strengths": [0.5]},
    ],
)
def test_choices_with_effect_are_not(choices: dict[str, Any]) -> None:
    assert plan(**choices).warnings == ()


@pytest.mark.parametrize(
    ("attention", "size", "said"),
    [
        ("full", 2048, "no effect with --attention full; leave one of the two out"),
        ("auto", 1024, "quicker; use --attention linear"),
    ],
)
def test_an_adapter_without_effect_is_said(attention: str, size: int, said: str) -> None:
    card = find_card("flux-dev")
    choices = {"model": card.name, "size": size, "attention": attention, "adapter": "clear-8"}
    recipe = Recipe.from_fragments({"prompt": "a lake"}, choices)
    (warning,) = choices_without_effect(recipe, card, stages(recipe, card))
    assert said in warning


@pytest.mark.parametrize("size", [128, 256, 1024])
def test_a_planned_recipe_warns_of_nothing(size: int) -> None:
    again = make_plan(plan(size=size).recipe, CARD, machine=MACHINE)
    assert again.warnings == ()


def test_copies_are_checked_again() -> None:
    copied = Recipe(prompt="sea", width_px=64, height_px=64).model_copy(update={"steps": 0})
    with pytest.raises(ConfigError, match="steps"):
        make_plan(copied, CARD, machine=MACHINE)


def test_several_images_share_one_disk(tmp_path: Path) -> None:
    one = plan()
    finished = output_bytes(one.recipe)
    plans = [one.validate(MACHINE, tmp_path / f"{name}.tif") for name in "abc"]
    needed = one.disk_bytes + 2 * finished
    room = Machine(cores=2, memory_bytes=16 * 10**9, disk_free_bytes=lambda _: needed)
    check_disk_together(plans, room)
    full = Machine(cores=2, memory_bytes=16 * 10**9, disk_free_bytes=lambda _: needed - 1)
    check_disk_together(plans[:2], full)
    with pytest.raises(RequestError, match="first 3 of 3 images"):
        check_disk_together(plans, full)


@pytest.mark.parametrize(
    ("width_px", "height_px", "stretched"), [(80, 40, False), (81, 40, False), (60, 40, True)]
)
def test_stretched_pictures_are_warned_of(width_px: int, height_px: int, stretched: bool) -> None:
    picture = {"path": "a.png", "width_px": width_px, "height_px": height_px, "sha256": "0" * 64}
    made = plan(size="256x128", init_image=picture, init_strength=0.5)
    assert [("a.png" in each and "stretched" in each) for each in made.warnings] == [
        True for _ in range(stretched)
    ]


def test_an_image_adapter_needs_a_picture() -> None:
    recipe = Recipe.from_fragments({"prompt": "x", "size": 512, "image_adapter": "a/b"})
    with pytest.raises(RequestError, match="--image-prompt"):
        make_plan(recipe, find_card("sd15"), machine=MACHINE)
