"""The number of steps that a doubling runs, as diffusers counts it, and the colour anchor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hirescli.cascade.methods import anchor_colours
from hirescli.cascade.pipelines import pipeline_of
from hirescli.models.load import Model
from hirescli.planning.cascade import schedule_steps


@pytest.fixture(scope="module")
def pipeline(model: Model) -> Any:
    return pipeline_of(model, scheduler="ddim", from_picture=True, place=torch.device("cpu"))


@settings(max_examples=150)
@given(
    strength=st.one_of(
        st.floats(0.01, 1.0, exclude_min=True), st.integers(1, 100).map(lambda n: n / 100)
    ),
    steps=st.integers(1, 60),
)
def test_diffusers_runs_exactly_the_steps(pipeline: Any, strength: float, steps: int) -> None:
    length = schedule_steps(strength, steps)
    assume(length <= pipeline.scheduler.config.num_train_timesteps)
    pipeline.scheduler.set_timesteps(length)
    timesteps, count = pipeline.get_timesteps(length, strength, torch.device("cpu"))
    assert len(timesteps) == count == steps


def test_every_schedule_has_its_length(pipeline: Any) -> None:
    for length in range(1, 1001):
        pipeline.scheduler.set_timesteps(length)
        timesteps = pipeline.scheduler.timesteps
        assert len(timesteps) == length
        assert timesteps[0] == 999
        assert timesteps[-1] >= 0


def test_whole_strength_is_the_plain_schedule() -> None:
    assert [schedule_steps(1.0, steps) for steps in (1, 4, 1000)] == [1, 4, 1000]


@pytest.mark.parametrize("deviation", [True, False])
def test_anchor_sets_colours_back(deviation: bool) -> None:
    random = torch.Generator().manual_seed(0)
    encoded = torch.randn(1, 5, 7, 9, generator=random) * 2 + 1
    made = torch.randn(1, 5, 7, 9, generator=random) * 3 - 4
    anchored = anchor_colours(made, encoded, deviation=deviation)
    axes = (2, 3)
    torch.testing.assert_close(anchored.mean(axes), encoded.mean(axes))
    wanted = encoded if deviation else made
    torch.testing.assert_close(anchored.std(axes), wanted.std(axes))


def test_anchor_keeps_what_is_right_already() -> None:
    encoded = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(anchor_colours(encoded, encoded, deviation=True), encoded)


def test_anchor_of_a_flat_channel_is_finite() -> None:
    made = torch.ones(1, 2, 4, 4)
    anchored = anchor_colours(made, torch.randn(1, 2, 4, 4), deviation=True)
    assert bool(torch.isfinite(anchored).all())
