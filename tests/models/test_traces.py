"""Traces beside the card: those of the loaded modules, and what a run computes by them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from folders import linfusion_folder, sd15_folder
from torch.utils.flop_counter import FlopCounterMode

import hirescli
from hirescli.bands.engine import Engine
from hirescli.bands.graph import Graph
from hirescli.errors import ConfigError
from hirescli.models.families import CONFIGS
from hirescli.models.load import DTYPES, Model, load
from hirescli.models.registry import find, find_card
from hirescli.models.trace_folder import trace_folder
from hirescli.models.traces import record, record_configs, record_module
from hirescli.planning.card import COMPONENTS, Attention, _read_trace, trace_path, write_trace
from hirescli.planning.compose import unpooled
from hirescli.planning.passes import Pass, Schedule
from hirescli.planning.trace import Trace

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
    # Linear attention sums in float32, and latents rest in it.
    assert bands[0] < (1 if component == "encoder" else 0.7) * bands[1]


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


# Stable Diffusion: recorded without weights


@pytest.mark.parametrize("attention", ["linear", "full"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_shipped_denoisers_are_those_of_the_configs(
    family: str, dtype: str, attention: Attention
) -> None:
    card = find_card(family)
    fresh = record_configs(card, CONFIGS / family, None, "denoiser", dtype, attention)
    assert card.trace("denoiser", dtype, attention) == fresh, "python -m hirescli.models.traces"


@pytest.mark.parametrize("component", ["decoder", "encoder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_shipped_autoencoders_are_those_of_the_configs(
    family: str, dtype: str, component: str
) -> None:
    card = find_card(family)
    fresh = record_configs(card, CONFIGS / family, None, component, dtype, "linear")
    assert card.trace(component, dtype) == fresh, "python -m hirescli.models.traces"


@pytest.mark.parametrize("component", ["decoder", "encoder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_attention_is_what_is_recorded_without_pooling(dtype: str, component: str) -> None:
    card = find_card("sdxl")
    config = json.loads((CONFIGS / "sdxl" / "vae" / "config.json").read_text())
    with torch.device("meta"):
        module = AutoencoderKL.from_config(config).to(DTYPES[dtype]).eval()
        fresh = record_module(module, component, card, pools=False)
    shipped = card.trace(component, dtype)
    assert unpooled(shipped) == fresh
    assert shipped != fresh
    assert unpooled(fresh) == fresh


def flops(trace: Trace, side: int) -> float:
    return sum(op.swept_rows * op.row_flops for op in trace.at(side, side))


def test_linear_attention_grows_with_the_pixels() -> None:
    card = find_card("sdxl")
    linear, full = (card.trace("denoiser", "bfloat16", each) for each in ("linear", "full"))
    assert flops(linear, 512) == pytest.approx(16 * flops(linear, 128), rel=0.01)
    assert flops(full, 512) > 20 * flops(full, 128)


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_the_arithmetic_is_what_torch_counts(family: str) -> None:
    """Of a plain call at the native size, matrix products and convolutions."""
    config = json.loads((CONFIGS / family / "unet" / "config.json").read_text())
    side, added = config["sample_size"], None
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        if family == "sdxl":
            added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}
        text = torch.empty(1, 77, config["cross_attention_dim"])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(torch.empty(1, 4, side, side), 1, text, added_cond_kwargs=added)
    said = flops(find_card(family).trace("denoiser", "float32", "full"), side)
    assert said == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_another_model_is_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = sd15_folder(tmp_path / "small")
    adapter = linfusion_folder(tmp_path / "adapter", folder / "unet", mid_dim_scale=2)
    source = find(str(folder), adapter=str(adapter))
    made = load(source, dtype="float32")
    for component in COMPONENTS:
        assert source.card.trace(component, "float32", "full") == record(made, component, "full")
    linear = source.card.trace("denoiser", "float32", "linear")
    assert linear == record(made, "denoiser")
    (kept,) = (tmp_path / "cache" / "hires" / "traces").iterdir()
    assert len(list(kept.rglob("*.json.gz"))) == 4

    def never(*_: object) -> Trace:
        raise AssertionError("recorded again")

    monkeypatch.setattr("hirescli.models.traces.record_configs", never)
    again = find(str(folder), adapter=str(adapter)).card
    assert again.trace("denoiser", "float32", "linear") == linear
    wider = linfusion_folder(tmp_path / "wider", folder / "unet", mid_dim_scale=1)
    other = find(str(folder), adapter=str(wider)).card
    with pytest.raises(AssertionError, match="recorded again"):
        other.trace("denoiser", "float32", "linear")


@pytest.mark.parametrize("text", [b"", b"no gzip", b"\x1f\x8b\x08\x00half"], ids=repr)
def test_a_damaged_recording_is_made_again(
    text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    card = find(str(sd15_folder(tmp_path / "small"))).card
    wanted = card.trace("decoder", "float32")
    path = trace_path(card, "decoder", "float32")
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(text)
    _read_trace.cache_clear()
    assert card.trace("decoder", "float32") == wanted
    assert path.read_bytes() == whole


@pytest.mark.parametrize("package", ["hirescli", "diffusers"])
def test_other_versions_record_for_themselves(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trace_folder("digest")
    if package == "hirescli":
        monkeypatch.setattr("hirescli.__version__", "0.0.0")
    else:
        monkeypatch.setattr("hirescli.models.trace_folder.version", {"diffusers": "0.0"}.get)
    assert trace_folder("digest") != before
    assert trace_folder("digest").parent == before.parent


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    card = find(str(sd15_folder(tmp_path / "small"))).card
    assert card.trace("decoder", "float32").ops


def named_alike(each: Pass) -> Pass:
    """A pass with its weights named as in a component alone.

    An engine computes graphs of several components, so that it puts a number before the names
    of all but the first.
    """
    names = sorted(re.sub(r"^\d+\.", "", name) for name in each.weights)
    return replace(each, weights=tuple(names))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["builtin", "pooled", "exact"])
def test_a_run_executes_the_schedules_of_its_plan(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the built-in model, and of another one whose autoencoder attends."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    choices = {"prompt": "a lake", "size": "256x192", "steps": 1, "upscale_steps": 1}
    if model != "builtin":
        choices |= {"model": str(sd15_folder(tmp_path / "small")), "vae_attention": model}
    recipe = hirescli.Recipe.from_fragments(choices)
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
        assert [named_alike(each) for each in made.passes] == [
            named_alike(each) for each in said.passes
        ]
        assert made.kept == said.kept
        assert made.rows == said.rows
        assert made.peak_bytes == said.peak_bytes
        assert made.flops == said.flops
