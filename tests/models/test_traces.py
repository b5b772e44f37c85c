"""Traces beside the card: those of the loaded modules, and what a run computes by them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

import hirescli
from hirescli.bands.engine import Engine
from hirescli.bands.graph import Graph
from hirescli.errors import ConfigError
from hirescli.models.load import Model, load
from hirescli.models.registry import find_card
from hirescli.models.traces import record
from hirescli.planning.card import COMPONENTS, trace_path, write_trace
from hirescli.planning.passes import Schedule

CARD = find_card("builtin")


@lru_cache(maxsize=2)
def model(dtype: str) -> Model:
    return load(CARD, dtype=dtype)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shipped_traces_are_those_of_the_modules(dtype: str, component: str) -> None:
    shipped, fresh = CARD.trace(component, dtype), record(model(dtype), component)
    for mine, other in zip(shipped.ops, fresh.ops, strict=False):
        assert mine == other
    assert shipped == fresh, "python -m hirescli.models.traces records them anew"


@pytest.mark.parametrize("component", COMPONENTS)
def test_half_precision_takes_half_the_bytes(component: str) -> None:
    full, half = (CARD.trace(component, dtype) for dtype in ("float32", "bfloat16"))
    assert sum(half.weight_bytes.values()) * 2 == sum(full.weight_bytes.values())
    bands = [sum(op.row_bytes for op in trace.at(32, 32)) for trace in (half, full)]
    assert bands[0] < 0.7 * bands[1]  # linear attention sums in float32


def test_equal_traces_are_equal_files(tmp_path: Path) -> None:
    card = CARD.model_copy(update={"folder": tmp_path})
    trace = CARD.trace("decoder", "float32")
    write_trace(card, "decoder", "float32", trace)
    written = trace_path(card, "decoder", "float32").read_bytes()
    assert written == trace_path(CARD, "decoder", "float32").read_bytes()
    assert card.trace("decoder", "float32") == trace


@pytest.mark.parametrize("text", [b"", b"no gzip", b"\x1f\x8b\x08\x00half"])
def test_a_trace_that_cannot_be_read_is_named(text: bytes, tmp_path: Path) -> None:
    card = CARD.model_copy(update={"folder": tmp_path})
    path = trace_path(card, "decoder", "float32")
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        card.trace("decoder", "float32")
    assert str(path) in str(caught.value)


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    card = CARD.model_copy(update={"folder": tmp_path})
    with pytest.raises(ConfigError, match=r"builtin\.encoder\.float32"):
        card.trace("encoder", "float32")


@pytest.mark.slow
def test_a_run_executes_the_schedules_of_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = hirescli.Recipe(
        prompt="a lake", width_px=256, height_px=192, steps=1, upscale_steps=1
    )
    planned = hirescli.plan(recipe)
    executed: list[Schedule] = []
    schedule = Engine.schedule

    def noted(engine: Engine, graph: Graph) -> Schedule:
        executed.append(schedule(engine, graph))
        return executed[-1]

    monkeypatch.setattr(Engine, "schedule", noted)
    hirescli.generate(recipe, tmp_path / "out.tif")
    # Between components lie those of the sampler's arithmetic, which convolve nothing.
    components = [each for each in executed if each.plain_flops > 0]
    wanted = [
        each.schedule
        for cost in planned.stage_costs
        for each in cost.components
        for _ in range(each.calls)
    ]
    assert len(components) == len(wanted)
    for made, said in zip(components, wanted, strict=True):
        assert made.passes == said.passes
        assert made.kept == said.kept
        assert made.rows == said.rows
        assert made.peak_bytes == said.peak_bytes
        assert made.flops == said.flops
