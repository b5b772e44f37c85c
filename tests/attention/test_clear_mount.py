"""CLEAR on tiny FLUX and SD3 transformers, against diffusers' own attention with a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clear_models import TEXT_TOKENS, drawn, flux, flux_ids, flux_inputs, made, sd3, sd3_inputs
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_flux import (
    FluxIPAdapterAttnProcessor,
    FluxTransformer2DModel,
)
from peft import LoraConfig
from torch import nn
from torch.overrides import TorchFunctionMode

import hirescli
from hirescli.attention.clear import proportional_scale
from hirescli.attention.clear_geometry import Geometry
from hirescli.attention.clear_mount import attentions, grid_of_ids, mounted
from hirescli.attention.clear_processor import ClearProcessor
from hirescli.attention.clear_reference import visible
from hirescli.errors import RequestError

Family = tuple[Callable[..., Any], Callable[..., dict[str, Any]]]
FAMILIES: dict[str, Family] = {"flux": (flux, flux_inputs), "sd3": (sd3, sd3_inputs)}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


class Masked(TorchFunctionMode):
    """Every self-attention of diffusers gets CLEAR's dense mask, and a scale."""

    def __init__(self, geometry: Geometry, scale: float | None = None) -> None:
        super().__init__()
        self.geometry, self.scale, self.calls = geometry, scale, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.calls += 1
            tokens = {**kwargs, **dict(zip(("query",), args, strict=False))}["query"].shape[2]
            g = self.geometry
            g = Geometry(g.rows, g.columns, g.window, 1, tokens - g.image_tokens, g.text_first)
            kwargs |= {"attn_mask": visible(g), "scale": self.scale}
        return func(*args, **kwargs)


def masked(
    transformer: nn.Module, inputs: Any, rows: int, columns: int, window: int, **more: Any
) -> torch.Tensor:
    text_first = "img_ids" in inputs
    with Masked(Geometry(rows, columns, window, text_first=text_first), **more) as mode:
        sample = made(transformer, inputs)
    assert mode.calls == len(list(attentions(transformer)))
    return sample


@contextmanager
def linearized(transformer: nn.Module, **more: Any) -> Iterator[Any]:
    adapter = hirescli.linearize(transformer, "clear", **{"weights": "own", **more})
    try:
        yield adapter
    finally:
        hirescli.unlinearize(transformer)


def states(transformer: nn.Module) -> dict[str, Any]:
    """Everything that must come back: objects by identity, storage by address."""
    return {
        **{f"m {name}": id(module) for name, module in transformer.named_modules()},
        **{f"p {n}": (id(p), p.data_ptr()) for n, p in transformer.named_parameters()},
        **{f"a {name}": id(attn.processor) for name, attn in attentions(transformer)},
        "hooks": len(transformer._forward_pre_hooks),
        "theta": repr(getattr(transformer.pos_embed, "theta", None)),
    }


# The same as diffusers


@pytest.mark.parametrize(("rows", "columns", "window"), [(9, 21, 4), (18, 10, 10)])
def test_it_is_diffusers_with_a_mask(family: Family, rows: int, columns: int, window: int) -> None:
    model, inputs = family
    transformer, given = model(), inputs(rows, columns, batch=2)
    wanted = masked(transformer, given, rows, columns, window)
    with linearized(transformer, window=window):
        found = made(transformer, given)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, made(transformer, given), atol=1e-3)


def test_a_window_that_sees_all_changes_nothing(family: Family) -> None:
    model, inputs = family
    transformer, given = model(), inputs(3, 3)
    before = made(transformer, given)
    with linearized(transformer, window=3):
        torch.testing.assert_close(made(transformer, given), before, rtol=1e-5, atol=1e-5)


def test_all_comes_back_as_it_was(family: Family) -> None:
    model, inputs = family
    transformer, given = model(), inputs(8, 9)
    before, wanted = states(transformer), made(transformer, given)
    with linearized(transformer, window=4) as adapter:
        adapter.load({name: torch.zeros_like(p) for name, p in adapter.parameters().items()})
        assert not torch.allclose(made(transformer, given), wanted, atol=1e-3)
    assert states(transformer) == before
    assert torch.equal(made(transformer, given), wanted)
    hirescli.unlinearize(transformer)  # nothing is mounted: nothing happens
    assert mounted(transformer) is None


def test_one_call_leaves_nothing_for_the_next(family: Family) -> None:
    model, inputs = family
    transformer = model()
    with linearized(transformer, window=3):
        sizes = [(8, 9), (9, 8), (6, 12)]
        first = [made(transformer, inputs(*size)) for size in sizes]
        again = [made(transformer, inputs(*size)) for size in reversed(sizes)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_pipelines_are_taken_too() -> None:
    pipeline = SimpleNamespace(transformer=flux())
    hirescli.linearize(pipeline, "clear", window=4, weights="own")
    assert all(type(a.processor) is ClearProcessor for _, a in attentions(pipeline.transformer))
    hirescli.unlinearize(pipeline)
    assert mounted(pipeline.transformer) is None


def test_arguments_may_stand_without_names() -> None:
    transformer, given = flux(), flux_inputs(6, 7)
    order = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    with linearized(transformer, window=3), torch.no_grad():
        wanted = made(transformer, given)
        others = {key: value for key, value in given.items() if key not in order}
        (found,) = transformer(*(given[key] for key in order), **others, return_dict=False)
    assert torch.equal(found, wanted)


# Settings


def test_proportional_attention_scales_scores(family: Family) -> None:
    model, inputs = family
    transformer, given = model(dual_attention_layers=()) if model is sd3 else model(), inputs(8, 9)
    scale = proportional_scale(16, 8 * 9 + TEXT_TOKENS)
    wanted = masked(transformer, given, 8, 9, 4, scale=scale)
    with linearized(transformer, window=4) as adapter:
        plain = made(transformer, given)
        adapter.settings.proportional = True
        torch.testing.assert_close(made(transformer, given), wanted, rtol=1e-5, atol=1e-5)
        adapter.settings.proportional = False
        assert torch.equal(made(transformer, given), plain)


def test_the_ntk_factor_is_that_of_the_rotary_base() -> None:
    transformer, given = flux(), flux_inputs(8, 9)
    with linearized(transformer, window=4) as adapter:
        adapter.ntk_factor = 10
        assert (adapter.ntk_factor, transformer.pos_embed.theta) == (10, 100_000)
        found = made(transformer, given)
    transformer.pos_embed.theta = 100_000
    torch.testing.assert_close(found, masked(transformer, given, 8, 9, 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model", "factor", "told"), [(sd3, 10, "no rotary"), (flux, 0, "above")])
def test_factors_that_cannot_be_are_refused(model: Any, factor: float, told: str) -> None:
    with linearized(model(), window=4) as adapter, pytest.raises(RequestError, match=told):
        adapter.ntk_factor = factor


def test_a_down_factor_pools(family: Family) -> None:
    model, inputs = family
    transformer, given = model(), inputs(8, 12)
    with linearized(transformer, window=3) as adapter:
        assert not any("spatial_weight" in name for name in adapter.parameters())
        without = made(transformer, given)
    with linearized(transformer, window=3, down_factor=4) as adapter:
        weights = [p for name, p in adapter.parameters().items() if "spatial_weight" in name]
        assert len(weights) == len(list(attentions(transformer)))
        assert all((w == 1 / 16).all() and w.shape == (1, 1, 1, 4, 1, 4, 1) for w in weights)
        found = made(transformer, given)
        with torch.no_grad():
            weights[0].mul_(3)
        assert not torch.equal(made(transformer, given), found)
    assert not torch.allclose(found, without, atol=1e-4)


# Training


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_all_that_distillation_trains(family: Family, checkpointing: bool) -> None:
    model, inputs = family
    transformer = model()
    if checkpointing:
        transformer.enable_gradient_checkpointing()
        transformer.train()
    with linearized(transformer, window=3, down_factor=2) as adapter:
        (sample,) = transformer(**inputs(4, 6), return_dict=False)
        sample.square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in adapter.parameters().values())


# LoRAs, image prompts, offload


def test_loras_work_before_and_after(family: Family) -> None:
    """On weights that are replaced, and on those that come back."""
    model, inputs = family
    config = LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    given = inputs(8, 9)
    results = []
    for lora_first in (True, False):
        transformer = model()
        torch.manual_seed(5)
        if lora_first:
            transformer.add_adapter(config)
        with linearized(transformer, window=4) as adapter:
            if not lora_first:
                transformer.add_adapter(config)
            assert not any("lora" in name for name in adapter.parameters())
            halved = {name: p.data / 2 for name, p in adapter.parameters().items()}
            adapter.load(halved)
            results.append(made(transformer, given))
        with_lora = made(transformer, given)
        transformer.delete_adapters("default")
        assert not torch.allclose(with_lora, made(transformer, given), atol=1e-4)
        torch.testing.assert_close(made(transformer, given), made(model(), given))
    torch.testing.assert_close(*results)


def test_image_prompts_add_what_they_did() -> None:
    transformer, given = flux(), flux_inputs(3, 3)
    torch.manual_seed(2)
    block = transformer.transformer_blocks[0]
    block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 10, num_tokens=(4,), scale=[0.7]))
    transformer.encoder_hid_proj = nn.Identity()

    def prompted(strength: float) -> torch.Tensor:
        prompts = {"ip_adapter_image_embeds": [strength * drawn(1, 1, 4, 10)]}
        return made(transformer, {**given, "joint_attention_kwargs": prompts})

    before, wanted, other = states(transformer), prompted(1), prompted(2)
    assert not torch.allclose(wanted, other, atol=1e-3)
    with linearized(transformer, window=3):
        torch.testing.assert_close(prompted(1), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(prompted(2), other, rtol=1e-5, atol=1e-5)
    assert states(transformer) == before


# What is refused


def test_weights_that_a_lora_is_fused_into_are_refused() -> None:
    transformer = flux()
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_k"]))
    transformer.fuse_lora()
    with pytest.raises(RequestError, match="unfuse_lora"):
        hirescli.linearize(transformer, "clear", weights="own")
    transformer.unfuse_lora()
    hirescli.linearize(transformer, "clear", weights="own")
    transformer.fuse_lora()
    with pytest.raises(RequestError, match="unfuse_lora"):
        hirescli.unlinearize(transformer)
    assert mounted(transformer) is not None


def test_other_attentions_are_refused() -> None:
    transformer = sd3()
    transformer.transformer_blocks[1].attn.set_processor(AttnProcessor2_0())
    with pytest.raises(RequestError, match=r"transformer_blocks\.1\.attn has another attention"):
        hirescli.linearize(transformer, "clear", weights="own")
    fused = flux()
    fused.transformer_blocks[0].attn.fuse_projections()
    with pytest.raises(RequestError, match="unfuse_qkv_projections"):
        hirescli.linearize(fused, "clear", weights="own")


def test_twice_and_other_models_are_refused() -> None:
    transformer = flux()
    with linearized(transformer, window=4), pytest.raises(RequestError, match="already"):
        hirescli.linearize(transformer, "clear", weights="own")
    with pytest.raises(RequestError, match="Linear has no attention that CLEAR replaces"):
        hirescli.linearize(nn.Linear(2, 2), "clear", weights="own")
    with pytest.raises(RequestError, match="has no transformer"):
        hirescli.linearize(SimpleNamespace(unet=None), "clear")
    with pytest.raises(RequestError, match='has no window and no down factor; "clear" has'):
        hirescli.linearize(transformer, "linfusion", window=8)  # type: ignore[call-overload]
    with pytest.raises(RequestError, match='there is "linfusion", "clear"'):
        hirescli.linearize(transformer, "sparse")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"window": 9}, "8x12.*at most 8"), ({"window": 4, "down_factor": 3}, "work: 1, 2, 4")],
)
def test_images_that_do_not_fit_are_refused_at_once(
    family: Family, settings: dict[str, int], told: str
) -> None:
    model, inputs = family
    transformer = model()
    with linearized(transformer, **settings), pytest.raises(RequestError, match=told):
        made(transformer, inputs(8, 12))


@pytest.mark.parametrize(("key", "value"), [("window", 0), ("window", 2.5), ("down_factor", "4")])
def test_settings_that_cannot_be_are_refused(key: str, value: Any) -> None:
    with pytest.raises(RequestError, match="whole number from 1 on"):
        hirescli.linearize(flux(), "clear", weights="own", **{key: value})


def test_a_mask_and_a_block_by_itself_are_refused() -> None:
    transformer, given = flux(), flux_inputs(6, 7)
    with linearized(transformer, window=3):
        attn = transformer.single_transformer_blocks[0].attn
        with pytest.raises(RequestError, match="call the transformer itself"):
            attn(drawn(1, 47, 32))
        given["joint_attention_kwargs"] = {"attention_mask": torch.ones(47, 47)}
        with pytest.raises(RequestError, match="a mask of its own"):
            made(transformer, given)


# Positions


def test_positions_that_bfloat16_rounds_are_put_right() -> None:
    grid, exact = grid_of_ids(flux_ids(300, 520, torch.bfloat16))
    assert grid == (300, 520)
    assert torch.equal(exact, flux_ids(300, 520))


def test_ids_with_a_batch_dimension_are_taken() -> None:
    transformer, given = flux(), flux_inputs(6, 7)
    with linearized(transformer, window=3):
        wanted = made(transformer, given)
        found = made(transformer, {**given, "img_ids": given["img_ids"][None]})
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "ids",
    [
        torch.cat([flux_ids(4, 5), flux_ids(4, 5) + torch.tensor([1.0, 0, 0])]),
        flux_ids(4, 5)[:-1],
        flux_ids(4, 5).flip(0),
        flux_ids(4, 5) + 1,
    ],
)
def test_positions_of_no_single_image_are_refused(ids: torch.Tensor) -> None:
    with pytest.raises(RequestError, match="one image"):
        grid_of_ids(ids)


def test_positions_on_the_meta_device_are_refused() -> None:
    with pytest.raises(RequestError, match="meta device"):
        grid_of_ids(flux_ids(2, 2).to("meta"))


def test_published_numbers_of_parameters() -> None:
    """FLUX's real shape, on no device: 57 attentions, 19 with an output projection."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=True)
    adapter = hirescli.linearize(transformer, "clear", down_factor=4, weights="own")
    parameters = adapter.parameters()
    assert len(parameters) == 57 * (3 * 2 + 1) + 19 * 2
    square = 3072 * 3072 + 3072
    assert sum(p.numel() for p in parameters.values()) == (57 * 3 + 19) * square + 57 * 16
