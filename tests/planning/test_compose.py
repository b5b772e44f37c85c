"""Traces of components that run together: what recording them together gives."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from hirescli.bands.engine import banded
from hirescli.bands.graph import Graph, parameter_names
from hirescli.cascade.skip import dilated as dilated_module
from hirescli.planning.compose import controlled, dilated
from hirescli.planning.passes import Store
from hirescli.planning.schedule import make_schedule
from hirescli.planning.trace import Trace

sys.path.append(str(Path(__file__).parent.parent / "bands"))
import models

SIDE = 16
TEXT = torch.zeros(1, 7, 24)


def image(channels: int, level: int | Fraction = 1) -> Any:
    shape = (1, channels, int(SIDE * level), int(SIDE * level))
    return banded(shape, lambda lo, hi: torch.zeros(0), dtype=torch.float32, level=level)


def condition(module: Any) -> dict[str, Any]:
    width = module.config["cross_attention_dim"]
    return {"timestep": 5, "encoder_hidden_states": torch.zeros(1, 7, width)}


def residuals(controlnet: Any, sample: Any) -> list[Any]:
    given = {"controlnet_cond": image(3, 8), "return_dict": False}
    down, middle = controlnet(sample, **condition(controlnet), **given)
    return [*down, middle]


def predicted(unet: Any, sample: Any, given: list[Any]) -> Any:
    return unet(
        sample, **condition(unet), down_block_additional_residuals=given[:-1],
        mid_block_additional_residual=given[-1], return_dict=False,
    )[0]  # fmt: skip


def trace_of(outputs: list[Any], *modules: Any) -> Trace:
    nodes = [node for output in outputs for node in output.nodes]
    return Graph.of(nodes, parameter_names(*modules)).trace


def figures(trace: Trace, rows: int | None) -> tuple[Any, ...]:
    made = make_schedule(trace, 48, 40, stores=(Store("host", 10**9),), rows=rows)
    return made.flops, made.peak_bytes, len(made.passes), made.state_bytes


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2])
def test_a_controlled_denoiser_is_what_is_recorded(count: int) -> None:
    unet: Any = models.sd15_unet()
    controlnets: list[Any] = [models.controlnet(seed) for seed in range(2, 2 + count)]
    apart = [
        Graph.of([n for r in residuals(c, image(4)) for n in r.nodes], parameter_names(c)).trace
        for c in controlnets
    ]
    sample = image(4)
    like = residuals(controlnets[0], image(4))
    given = [
        banded(r.shape, lambda lo, hi: torch.zeros(0), dtype=r.dtype, level=r.nodes[0].grid.level)
        for r in like
    ]
    alone = trace_of([predicted(unet, sample, given)], unet)

    sample = image(4)
    total = residuals(controlnets[0], sample)
    for controlnet in controlnets[1:]:
        total = [a + b for a, b in zip(total, residuals(controlnet, sample), strict=True)]
    together = trace_of([predicted(unet, sample, total)], unet, *controlnets)
    composed = controlled(alone, apart)
    assert sorted(composed.parameter_bytes.values()) == sorted(together.parameter_bytes.values())
    for rows in (None, 5):
        assert figures(composed, rows) == figures(together, rows)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_a_dilated_denoiser_is_what_is_recorded(ratio: int) -> None:
    unet: Any = models.sd15_unet()
    plain = trace_of([unet(image(4), **condition(unet), return_dict=False)[0]], unet)
    with dilated_module(unet, ratio):
        wide = trace_of([unet(image(4), **condition(unet), return_dict=False)[0]], unet)
    for rows in (None, 5):
        assert figures(dilated(plain, ratio), rows) == figures(wide, rows)
