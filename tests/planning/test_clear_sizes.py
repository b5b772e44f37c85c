"""Stages that CLEAR's attention cannot take are refused, or chosen otherwise, before a run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hirescli.attention.clear_geometry import Geometry
from hirescli.errors import RequestError
from hirescli.models.registry import find
from hirescli.planning.card import Card
from hirescli.planning.cascade import Stage, stages
from hirescli.planning.sizes import MAX_ASPECT
from hirescli.recipe import Recipe

FLUX = find("flux-dev", adapter="clear-8-down-4", weights=False).card
WIDE = find("flux-dev", adapter="clear-32", weights=False).card


def stages_of(card: Card, width_px: int, height_px: int, **choices: Any) -> tuple[Stage, ...]:
    recipe = Recipe(
        prompt="a lake", model=card.name, width_px=width_px, height_px=height_px, **choices
    )
    return stages(recipe, card)


@pytest.mark.parametrize("side", [1040, 1041])  # the latter is no multiple of 16 px either
def test_sides_that_a_down_factor_does_not_divide_are_refused(side: int) -> None:
    with pytest.raises(RequestError, match=r"multiples of 64 px.*: 1024x1024 or 1088x1088"):
        stages_of(FLUX, side, side)


def test_a_small_picture_has_no_need_of_whole_squares() -> None:
    (stage,) = stages_of(FLUX, 720, 1040)  # below 1024x1024 px it is drawn with full attention
    assert stage.attention == "full"
    assert stages_of(FLUX, 1040, 1040, attention="full")[-1].height_px == 1040


@pytest.mark.parametrize("attention", ["auto", "linear"])
@given(st.integers(8, 256), st.integers(8, 256))
def test_every_linear_stage_is_whole_squares(attention: str, across: int, down: int) -> None:
    """Between base and target too: 3072 px would have one of 1776 px, 111 tokens."""
    if max(across, down) > MAX_ASPECT * min(across, down):
        return
    for stage in stages_of(FLUX, 64 * across, 64 * down, attention=attention):
        if stage.attention == "linear":
            Geometry(stage.height_px // 16, stage.width_px // 16, window=8, down_factor=4)


def test_a_window_that_is_too_large_is_refused() -> None:
    with pytest.raises(RequestError, match=r"at least 512 px, and a stage has 496x512 px.* 31"):
        stages_of(WIDE, 496, 512, attention="linear")
    assert len(stages_of(WIDE, 512, 512, attention="linear")) == 1
    assert stages_of(WIDE, 496, 512)[0].attention == "full"


def test_a_model_s_own_weights_are_asked_too() -> None:
    card = find("flux-dev", weights=False).card
    assert (card.clear_window, card.clear_down_factor) == (16, 1)


def test_a_shape_without_a_base_is_refused() -> None:
    coarse = FLUX.model_copy(update={"clear_down_factor": 16})
    with pytest.raises(RequestError, match="no picture of its shape near 1024 px"):
        stages_of(coarse, 2560, 6144)
