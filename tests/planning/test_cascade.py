from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hirescli.errors import RequestError
from hirescli.models.registry import find_card
from hirescli.planning.card import Card
from hirescli.planning.cascade import resolve, stages
from hirescli.planning.sizes import (
    MAX_SIDE_PX,
    base_size,
    doublings,
    enlarged_sizes,
    nearest_sizes,
    sizes,
)
from hirescli.recipe import Recipe

CARD = find_card("builtin")
SDXL = find_card("sdxl")
COARSE = CARD.model_copy(
    update={"native_px": 1024, "multiple_px": 64, "min_px": 256, "name": "coarse"}
)


@st.composite
def working_sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Sizes that the built-in model can make, of any aspect up to 4:1."""
    multiple_px = CARD.multiple_px
    short = draw(st.integers(CARD.min_px // multiple_px, 40_000 // multiple_px))
    long = draw(st.integers(short, 4 * short))
    width, height = draw(st.permutations([short, long]))
    return width * multiple_px, height * multiple_px


@given(working_sizes())
def test_stages_end_at_the_target_and_at_most_double(size: tuple[int, int]) -> None:
    grown = sizes(*size, CARD)
    assert grown[-1] == size
    for small, large in pairwise(grown):
        assert small != large
        for before_px, after_px in zip(small, large, strict=True):
            assert before_px <= after_px <= 2 * before_px
    for width_px, height_px in grown:
        assert width_px % CARD.multiple_px == height_px % CARD.multiple_px == 0


@given(working_sizes())
def test_a_base_stays_within_what_the_model_was_trained_at(size: tuple[int, int]) -> None:
    width_px, height_px = base_size(*size, CARD)
    assert max(width_px, height_px) <= 2 * CARD.native_px
    assert min(width_px, height_px) >= CARD.min_px
    assert width_px * height_px <= 1.1 * CARD.native_px**2
    if size[0] * size[1] > CARD.native_px**2:
        assert width_px * height_px >= 0.7 * CARD.native_px**2
        distortion = (width_px / height_px) / (size[0] / size[1])
        assert 0.93 < distortion < 1.07  # the model's multiple is an eighth of its native size


@given(st.integers(4, 600), st.integers(4, 600))
def test_a_model_of_coarser_multiples(width: int, height: int) -> None:
    width_px, height_px = width * 64, height * 64
    if max(width, height) > 4 * min(width, height):
        return
    grown = sizes(width_px, height_px, COARSE)
    assert grown[-1] == (width_px, height_px)
    assert max(grown[0]) <= 2 * COARSE.native_px


def test_powers_of_two_double() -> None:
    assert sizes(2048, 2048, CARD) == (
        (64, 64),
        (128, 128),
        (256, 256),
        (512, 512),
        (1024, 1024),
        (2048, 2048),
    )
    assert len(sizes(16384, 16384, CARD)) == 9


def test_a_target_below_native_is_the_base() -> None:
    assert sizes(48, 64, CARD) == ((48, 64),)


def test_stages_take_steps_guidance_and_strengths_in_order() -> None:
    recipe = Recipe.from_fragments(
        {"prompt": "a sea", "size": 4096, "steps": 9, "upscale_steps": 3, "strengths": [0.5, 0.2]}
    )
    made = stages(recipe, CARD)
    assert [stage.kind for stage in made] == ["base"] + ["upscale"] * 6
    assert [stage.strength for stage in made] == [None, 0.5, 0.2, 0.2, 0.2, 0.2, 0.2]
    assert [stage.steps for stage in made] == [9, 3, 3, 3, 3, 3, 3]
    assert made[0].guidance_scale == CARD.guidance_scale
    assert made[1].guidance_scale == CARD.upscale_guidance_scale[0]
    assert (made[-1].latent_width, made[-1].latent_height) == (512, 512)


def enlarged(source_px: int, size_px: int, card: Card = SDXL, **choices: Any) -> list[Any]:
    """Strength and steps of the stages that enlarge a square picture."""
    source = {"path": "a.png", "width_px": source_px, "height_px": source_px}
    asked = {"prompt": "", "size": size_px, "source": source}
    recipe = Recipe.from_fragments(asked, choices)
    return [(stage.strength, stage.steps) for stage in stages(recipe, card)]


def test_an_enlarged_picture_gets_the_strength_of_its_size() -> None:
    """As in a cascade from a prompt, whose first doubling ends at twice the native size."""
    published = [(0.32, 16), (0.24, 12), (0.16, 8), (0.08, 4)]
    assert enlarged(1024, 16384) == published
    assert enlarged(2048, 4096) == published[1:2]
    assert enlarged(8192, 16384) == published[3:]
    assert enlarged(4096, 32768) == [*published[2:], published[3]]
    assert enlarged(3000, 4000) == published[1:2]
    # Brought to the native size first, which is no doubling: what the first one gets.
    assert enlarged(500, 2048) == [published[0], published[0]]


def test_what_is_asked_for_counts_from_the_first_stage() -> None:
    asked = enlarged(4096, 16384, strengths=[0.5, 0.4], upscale_steps=[9])
    assert asked == [(0.5, 9), (0.4, 9)]
    assert enlarged(4096, 16384, strengths=[0.5]) == [(0.5, 8), (0.5, 4)]


def test_an_enlarged_picture_is_planned_the_same_again() -> None:
    source = {"path": "a.png", "width_px": 4096, "height_px": 4096}
    asked = Recipe.from_fragments({"prompt": "", "size": 16384, "source": source})
    resolved = resolve(asked, SDXL)
    assert resolved.strengths == (0.16, 0.08)
    assert resolve(resolved, SDXL) == resolved


@given(working_sizes(), st.integers(2, 9))
def test_every_size_has_its_doublings(size: tuple[int, int], share: int) -> None:
    """A cascade from a prompt takes as many as its stages are, whatever it is enlarged from."""
    grown = sizes(*size, CARD)
    assert doublings(size, CARD) == len(grown) - 1
    source = (max(1, size[0] * share // 10), max(1, size[1] * share // 10))
    try:
        targets = enlarged_sizes(source, size, CARD)
    except RequestError:  # rounded to another shape
        return
    counted = [doublings(each, CARD) for each in targets]
    assert counted == sorted(counted)
    assert counted[-1] == len(grown) - 1


def test_a_half_of_a_ratio_is_rounded_up() -> None:
    """As dilated branches ask for it; round() would go to the even neighbour."""
    ratios = [
        stages(Recipe.from_fragments({"prompt": "a", "size": side}), SDXL)[-1].ratio
        for side in (1024, 1528, 1536, 2048, 2560, 3584, 16384)
    ]
    assert ratios == [1, 1, 2, 2, 3, 4, 16]


def test_a_strength_too_low_for_its_steps_is_refused() -> None:
    recipe = Recipe.from_fragments({"prompt": "a sea", "size": 512, "strengths": [0.002]})
    with pytest.raises(RequestError, match=r"need a schedule of .* at most 1000"):
        stages(recipe, CARD)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((7, 7), "below the least of 32 px.*work: 32x32"),
        ((16385, 16385), "16385 px is not a multiple of 8 px.*work: 16384x16384 or 16392x16392"),
        ((16385, 16384), "width 16385 px.*work: 16384x16384 or 16392x16384"),
        ((10**9, 10**9), "above the limit of 1048576 px.*work: 1048576x1048576"),
        ((1, 16384), "below the least.*more than 4 times.*work: 4096x16384"),
        ((2048, 504), "more than 4 times.*work: 2048x512"),
    ],
)
def test_sizes_that_do_not_work_are_named(size: tuple[int, int], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        sizes(*size, CARD)
    assert f"{size[0]}x{size[1]}" in str(caught.value)


@given(st.integers(1, 2 * MAX_SIDE_PX), st.integers(1, 2 * MAX_SIDE_PX))
def test_nearest_sizes_do_work(width_px: int, height_px: int) -> None:
    for size in nearest_sizes(width_px, height_px, CARD):
        assert sizes(*size, CARD)[-1] == size


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"scheduler": "magic"}, 'scheduler "magic".*use one of ddim'),
        ({"revision": "main"}, 'revision "main".*leave the revision out'),
    ],
)
def test_choices_that_the_card_does_not_know_are_named(choice: dict[str, str], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        stages(Recipe.from_fragments({"prompt": "a", "size": 512}, choice), CARD)
