"""ControlNets for FLUX: which fit, what is recorded of them, and what plans count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from folders import controlnet_folder, flux_controlnet_folder, flux_folder, sd15_folder, small_flux

from hirescli.bands.graph import Graph, parameter_names
from hirescli.bands.tensor import naming_modules
from hirescli.errors import RequestError
from hirescli.models.flux_control_traces import record_flux_controlled, record_flux_controlnet
from hirescli.models.flux_controls import SHARED, ControlLayout
from hirescli.models.plugin_sources import controlnet_layout, find_controlnet
from hirescli.models.registry import find, find_card
from hirescli.models.trace_inputs import flux_condition, flux_tokens
from hirescli.planning.choices import check_choices
from hirescli.planning.compose import controlled
from hirescli.planning.machine import Device, Machine
from hirescli.planning.passes import Store
from hirescli.planning.plan import Plan, make_plan
from hirescli.planning.schedule import make_schedule
from hirescli.planning.trace import Trace
from hirescli.recipe import Recipe

SIDE = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("controls")
    flux_folder(root / "flux")
    sd15_folder(root / "sd15")
    flux_controlnet_folder(root / "flux-control", double=2, single=0)
    controlnet_folder(root / "sd15-control", "sd15")
    return root


# Which fit


def test_a_layout_is_read_from_the_config(root: Path) -> None:
    model = find(str(root / "flux"))
    named = str(root / "flux-control")
    assert controlnet_layout(named, None, model=model) == "2+0g"
    assert find_controlnet(named, model=model).path == root / "flux-control"
    for text in ("2+0g", "5+10"):
        assert str(ControlLayout.parse(text)) == text


@pytest.mark.parametrize(
    ("model", "control", "said"),
    [
        ("flux", "sd15-control", r"ControlNet for a Stable Diffusion model with a UNet .*`flux`"),
        ("sd15", "flux-control", r"ControlNet for FLUX .*`sd15`"),
    ],
)
def test_another_family_is_refused_by_name(
    root: Path, model: str, control: str, said: str
) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        find_controlnet(str(root / control), model=find(str(root / model)))
    assert control in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_mode": 10}, "several in one"),
        ({"conditioning_embedding_channels": 16}, "reads pixels"),
        ({"extra_condition_channels": 4}, "reads a mask"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, that of the transformer 2"),
        ({"num_layers": 0}, "has no blocks"),
        ({"_class_name": "FluxTransformer2DModel"}, "is a FluxTransformer2DModel"),
    ],
)
def test_what_is_not_run_is_refused_by_name(
    root: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    config = json.loads((root / "flux-control/config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / weights).write_bytes((root / "flux-control" / weights).read_bytes())
    with pytest.raises(RequestError, match=said):
        controlnet_layout(str(tmp_path), None, model=find(str(root / "flux")))


def test_a_single_file_is_refused(root: Path) -> None:
    file = root / "flux-control/diffusion_pytorch_model.safetensors"
    with pytest.raises(RequestError, match="single file, which does not say its layout"):
        find_controlnet(str(file), model=find(str(root / "flux")))


def control(layout: str) -> dict[str, Any]:
    return {"kind": "canny", "path": "e.png", "width_px": 64, "height_px": 64, "layout": layout}


def asked(*layouts: str) -> Recipe:
    said = {"prompt": "a", "model": "flux-dev", "size": 1024, "threads": 2, "attention": "full"}
    return Recipe.from_fragments(said, {"controls": [control(each) for each in layouts]})


def test_several_are_of_one_layout() -> None:
    """Diffusers would leave out what one has more than the other."""
    card = find_card("flux-dev")
    check_choices(asked("5+10g", "5+10g"), card)
    with pytest.raises(RequestError, match=r"same numbers of blocks.*canny: 4\+1g, canny: 5\+10g"):
        check_choices(asked("4+1g", "5+10g"), card)


# What is recorded


def flux(double: int, single: int) -> Any:
    config = dict(small_flux().config) | {"num_layers": double, "num_single_layers": single}
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    with torch.device("meta"):
        return FluxTransformer2DModel(**config).eval()


def figures(trace: Trace) -> tuple[Any, ...]:
    made = make_schedule(trace, 24, 20, stores=(Store("host", 10**9),), rows=5)
    return made.flops, made.peak_bytes, len(made.passes), made.state_bytes


@torch.no_grad()
def together(transformer: Any, card: Any, layout: ControlLayout) -> Trace:
    """What is recorded of a ControlNet and the transformer in one."""
    shared = {key: transformer.config[key] for key in SHARED}
    with torch.device("meta"):
        net: Any = FluxControlNetModel(**shared, **layout.config).eval()
    said = {key: flux_condition(net, card, SIDE, guided=True) for key in ("net", "whole")}
    sample = flux_tokens(net, SIDE, 16)
    with naming_modules(net):
        blocks, singles = net(
            hidden_states=sample, controlnet_cond=flux_tokens(net, SIDE, 16), **said["net"],
            return_dict=False,
        )  # fmt: skip
    with naming_modules(transformer):
        (made,) = transformer(
            sample, **said["whole"], controlnet_block_samples=blocks,
            controlnet_single_block_samples=singles, return_dict=False,
        )  # fmt: skip
    return Graph.of(made.nodes, parameter_names(transformer, net)).trace


@pytest.mark.parametrize(
    "layout", ["1+1g", "2+0g", "0+3g", "3+2g", "4+6g"], ids=lambda layout: layout
)
def test_a_controlled_transformer_is_what_is_recorded(root: Path, layout: str) -> None:
    """Of three blocks apart and four of one stream; the last residuals may be read by none."""
    transformer, card = flux(3, 4), find(str(root / "flux")).card
    parsed = ControlLayout.parse(layout)
    net = record_flux_controlnet(transformer, card, parsed)
    whole = controlled(record_flux_controlled(transformer, card, parsed), [net])
    assert figures(whole) == figures(together(transformer, card, parsed))


# What plans count


def plan(*layouts: str) -> Plan:
    machine = Machine(2, 128 * 10**9, (Device("a GPU", 80 * 10**9),), lambda _: 10**12)
    card = find("flux-dev", weights=False).card
    return make_plan(asked(*layouts), card, machine=machine)


def test_plans_count_weights_latents_and_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4+1 blocks, at the real width; what is recorded is kept for the next plan."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with torch.device("meta"):
        net = FluxControlNetModel(**SHARED, **ControlLayout(4, 1, True).config)
    weights = sum(p.numel() for p in net.parameters()) * 2
    none, one, two = plan(), plan("4+1g"), plan("4+1g", "4+1g")
    stages = [made.stage_costs[0] for made in (none, one, two)]
    base, more, most = (each.memory.base_bytes for each in stages)
    assert (more - base, most - base) == (weights, 2 * weights)
    encoded = [sum(c.calls for c in each.components if c.name == "encoder") for each in stages]
    assert encoded == [0, 1, 2]
    latents = [each.memory.latents_bytes for each in stages]
    assert (latents[1] - latents[0], latents[2] - latents[1]) == (128**2 * 16 * 6, 128**2 * 16 * 2)
    flops = [sum(c.flops for c in each.components if c.name == "denoiser") for each in stages]
    assert flops[0] < flops[1] < flops[2]
    kept = sorted(path.name for path in tmp_path.rglob("*.json.gz"))
    assert kept == [
        "flux.controlled-4+1g.full.bfloat16.json.gz", "flux.controlnet-4+1g.bfloat16.json.gz"
    ]  # fmt: skip
