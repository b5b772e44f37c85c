"""Whole pipelines in bands: same seed, same picture as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement import assert_exact, trace_of
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)
from pipelines import CASES, PARTS, TEXT_TO_IMAGE

import hirescli

SCHEDULERS = [
    DDIMScheduler,
    EulerDiscreteScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
]


def traces(pipeline: Any) -> dict[str, Any]:
    parts = {name: trace_of(getattr(pipeline, name, None)) for name in PARTS}
    return {**parts, "pipeline": sorted(vars(pipeline)), "config": dict(pipeline.config)}


@pytest.mark.parametrize("name", CASES)
def test_latents(name: str) -> None:
    case = CASES[name]
    pipeline = case.pipeline()
    wanted, before = case.run(pipeline), traces(pipeline)
    with hirescli.stream(pipeline, rows=4) as report:
        made = case.run(pipeline)
    assert report.passes >= 1
    assert_exact([made], [wanted])
    assert traces(pipeline) == before
    assert torch.equal(case.run(pipeline), wanted)


@pytest.mark.parametrize("name", ["sd", "sdxl image to image", "controlnet"])
def test_pictures(name: str) -> None:
    case = CASES[name]
    pipeline = case.pipeline()
    wanted = case.run(pipeline, output_type="pt")
    with hirescli.stream(pipeline, rows=4):
        assert_exact([case.run(pipeline, output_type="pt")], [wanted])


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_schedulers(scheduler: type[Any]) -> None:
    case = CASES["sd image to image"]
    pipeline = case.pipeline(scheduler)
    wanted = case.run(pipeline)
    with hirescli.stream(pipeline, rows=5):
        assert_exact([case.run(pipeline)], [wanted])


def test_several_pictures_of_one_prompt() -> None:
    pipeline = TEXT_TO_IMAGE.pipeline()
    wanted = TEXT_TO_IMAGE.run(pipeline, num_images_per_prompt=2)
    with hirescli.stream(pipeline, rows=4):
        made = TEXT_TO_IMAGE.run(pipeline, num_images_per_prompt=2)
    assert_exact([made], [wanted])


def test_callback_sees_and_changes_plain_latents() -> None:
    pipeline, seen = TEXT_TO_IMAGE.pipeline(), []

    def change(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(type(values["latents"]))
        return {"latents": values["latents"] * 0.9}

    wanted = TEXT_TO_IMAGE.run(pipeline, callback_on_step_end=change)
    with hirescli.stream(pipeline, rows=4):
        made = TEXT_TO_IMAGE.run(pipeline, callback_on_step_end=change)
    assert_exact([made], [wanted])
    assert set(seen) == {torch.Tensor}


def test_components_streamed_apart_agree_with_the_pipeline() -> None:
    """Each in a context of its own, the residuals between them are whole tensors."""
    case = CASES["controlnet"]
    pipeline = case.pipeline()
    wanted = case.run(pipeline)
    with hirescli.stream(pipeline.controlnet, rows=3), hirescli.stream(pipeline.unet, rows=5):
        assert_exact([case.run(pipeline)], [wanted])


def test_pipeline_is_as_before_after_an_exception() -> None:
    case = CASES["controlnet"]
    pipeline = case.pipeline()
    wanted, before = case.run(pipeline), traces(pipeline)

    def fail(*_: Any) -> dict[str, Any]:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"), hirescli.stream(pipeline, rows=4):
        case.run(pipeline, callback_on_step_end=fail)
    assert traces(pipeline) == before
    assert torch.equal(case.run(pipeline), wanted)
