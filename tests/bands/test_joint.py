"""Sequences of text and picture: their attention, their places, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from models import draw, flux_inputs, sd3_inputs
from torch import Tensor

import hirescli
from hirescli.bands.joint_attention import KeySum
from hirescli.bands.positions import table_rows
from hirescli.bands.samples import places_grid
from hirescli.errors import RequestError


@given(cuts=st.lists(st.integers(1, 11), max_size=4, unique=True), swaps=st.booleans())
def test_states_of_owners_of_rows_merge_in_any_grouping(cuts: list[int], swaps: bool) -> None:
    """What several ranks would all-reduce is what one of them folds alone."""
    query, key, value = (draw((1, 2, n, 8), n) for n in (5, 12, 12))
    value = draw((1, 2, 12, 8), 3)
    reduction = KeySum(None, query)
    bounds = [0, *sorted(cuts), 12]
    bands = list(pairwise(bounds))
    states = [reduction.partial([key[:, :, a:b], value[:, :, a:b]]) for a, b in bands]
    if swaps:
        states.reverse()
    while len(states) > 1:  # pairwise, as a tree of ranks would
        pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
        states = [reduction.merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    made = reduction.finish(states[0])[..., :-1]
    torch.testing.assert_close(made, F.scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (300, 4), (5, 300)])
def test_places_say_rows_and_columns(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Also above 256, where bfloat16 has not every whole number."""
    places = models.places(size).to(dtype)
    grid = places_grid(places, size[0] * size[1], "it")
    assert (grid.rows, grid.width) == size


@torch.no_grad()
@pytest.mark.parametrize("size", [(2, 270), (262, 3)])
def test_neighbours_beyond_256_have_places_of_their_own(size: tuple[int, int]) -> None:
    """Pipelines in bfloat16 give places in bfloat16, in which 257 is 256."""
    module, inputs = models.FLUX.module(), flux_inputs(size, 1, 1)
    wanted = module(**inputs).sample
    rounded = inputs | {"img_ids": inputs["img_ids"].to(torch.bfloat16)}
    with hirescli.stream(module, rows=size[0]):
        made = module(**rounded).sample
    torch.testing.assert_close(made, wanted, atol=2e-4, rtol=0)
    assert not torch.allclose(module(**rounded).sample, wanted, atol=2e-3, rtol=0)


def test_other_places_in_half_precision_stay_as_they_are() -> None:
    """Such as those that begin further to the right."""
    module, inputs = models.FLUX.module(), flux_inputs((4, 3), 1, 1)
    shifted = inputs["img_ids"].clone()
    shifted[:, 2] += 100
    inputs["img_ids"] = shifted.to(torch.bfloat16)
    with torch.no_grad(), hirescli.stream(module, rows=2):
        made = module(**inputs).sample
    with torch.no_grad():
        torch.testing.assert_close(made, module(**inputs).sample, atol=2e-4, rtol=0)


@torch.no_grad()
def refused(inputs: dict[str, Any]) -> str:
    module = models.FLUX.module()
    with hirescli.stream(module, rows=2), pytest.raises(RequestError) as caught:
        module(**inputs)
    return str(caught.value)


def test_places_of_two_pictures_are_refused() -> None:
    """As those of Kontext, with a second picture behind the first."""
    inputs = flux_inputs((4, 3), 1, 1)
    second = inputs["img_ids"].clone()
    second[:, 0] = 1
    inputs["hidden_states"] = torch.cat([inputs["hidden_states"]] * 2, 1)
    inputs["img_ids"] = torch.cat([inputs["img_ids"], second])
    assert "img_ids (24, 3) for 24 tokens that are not the rows of one picture" in refused(inputs)


def test_tokens_without_places_are_refused() -> None:
    assert "places, img_ids (N, 3)" in refused(flux_inputs((4, 3), 1, 1) | {"img_ids": None})


def test_a_mask_over_text_and_picture_is_refused() -> None:
    mask = {"attention_mask": torch.zeros(1, 1, 1, 19)}
    message = refused(flux_inputs((4, 3), 1, 1) | {"joint_attention_kwargs": mask})
    assert "scaled_dot_product_attention in transformer_blocks.0.attn" in message


def stretched(table: Tensor, size: tuple[int, int]) -> Tensor:
    whole = F.interpolate(table.permute(2, 0, 1)[None], size=size, mode="bilinear")
    return whole[0].permute(1, 2, 0)


@pytest.mark.parametrize("size", [(20, 20), (26, 30), (41, 33)])
def test_a_table_is_stretched_as_interpolation_does(size: tuple[int, int]) -> None:
    table = draw((20, 20, 4), 1)
    parts = [table_rows(table, size, lo, min(lo + 3, size[0])) for lo in range(0, size[0], 3)]
    torch.testing.assert_close(torch.cat(parts), stretched(table, size), atol=1e-5, rtol=0)


def test_a_shorter_side_is_cut_out_of_the_middle() -> None:
    table = draw((20, 20, 4), 1)
    made = table_rows(table, (30, 7), 0, 30)
    torch.testing.assert_close(made, stretched(table, (30, 20))[:, 6:13], atol=1e-5, rtol=0)


@torch.no_grad()
def test_pictures_beyond_the_table_are_those_of_a_stretched_one() -> None:
    """Diffusers refuses them."""
    inputs = sd3_inputs((48, 44), 1, 1)
    module = models.sd35_transformer()
    with hirescli.stream(module, rows=5):
        made = module(**inputs).sample
    with pytest.raises(ValueError, match="cannot be greater"):
        module(**inputs)
    embed: Any = module.pos_embed
    table = stretched(embed.pos_embed.view(20, 20, -1), (24, 22))
    embed.cropped_pos_embed = lambda *_: table.flatten(0, 1)[None]
    torch.testing.assert_close(made, module(**inputs).sample, atol=2e-4, rtol=0)
