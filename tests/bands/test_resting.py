"""Weights that rest on the host, with no GPU: a call on no device records what it would do."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from torch.utils._pytree import tree_map

from hirescli.bands.call import StreamedCall, replaced_forward
from hirescli.bands.engine import Engine
from hirescli.bands.graph import Graph, parameter_names
from hirescli.planning.passes import Store
from hirescli.planning.schedule import make_schedule
from hirescli.planning.trace import Trace

SIZE = (9, 7)
FAMILIES = {
    "sd15": (models.sd15_unet, models.unet_inputs, models.call_unet),
    "sdxl": (models.sdxl_unet, models.sdxl_inputs, models.call_unet),
    "linfusion": (models.linfusion_unet, models.unet_inputs, models.call_unet),
    "ip adapter": (models.ip_adapter_unet, models.ip_adapter_inputs, models.call_unet),
    "controlnet": (models.controlnet, models.controlnet_inputs, models.call_controlnet),
}


def recorded(family: str, device: str, *, loads_weights: bool) -> Trace:
    build, inputs, call = FAMILIES[family]
    module: Any = build()
    given = tree_map(
        lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, inputs(SIZE, 1, 3)
    )
    engine = Engine(stores=(), loads_weights=loads_weights, names=parameter_names(module))
    nodes: list[Any] = []

    def give(tensors: Any) -> list[Any]:
        nodes.extend(node for tensor in tensors for node in tensor.nodes)
        return list(tensors)

    with replaced_forward(module, StreamedCall("", module, engine, give=give)):
        call(module, given)
    return Graph.of(nodes, engine.names).trace


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_recorded_where_its_weights_are_not(family: str) -> None:
    """Embeddings and keys of the text are computed with copies of the weights."""
    assert recorded(family, "meta", loads_weights=True) == recorded(
        family, "cpu", loads_weights=False
    )


def test_it_is_refused_where_weights_are_not_and_do_not_follow() -> None:
    with pytest.raises(RuntimeError, match="device"):
        recorded("sd15", "meta", loads_weights=False)


def test_constants_stand_on_the_device_and_weights_come_and_go() -> None:
    trace = recorded("sd15", "cpu", loads_weights=False)
    assert trace.constant_bytes > 0
    assert not any(name.startswith("constant.") for name in trace.parameter_bytes)
    stores = (Store("device", 10**9), Store("host", 10**9, 20e9))
    resting, standing = (
        make_schedule(trace, 64, 64, stores=stores, loads_weights=loads) for loads in (True, False)
    )
    assert resting.state_bytes == standing.state_bytes >= trace.constant_bytes
    weights = sum(
        trace.parameter_bytes[name]
        for p in resting.passes
        for name in p.weights
        if name in trace.parameter_bytes
    )
    assert resting.moved_bytes == standing.moved_bytes + weights
    assert resting.seconds > standing.seconds
