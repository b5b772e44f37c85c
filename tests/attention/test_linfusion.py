"""LinFusion's operator against its definition, and the adapter in the published format."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linfusion_unets import denoised, tiny_unet, with_random_weights
from safetensors.torch import load_file

from hirescli.attention.linfusion import (
    LinearAttention,
    LinFusionAdapter,
    linear_attention,
    mount,
    unmount,
)


def quadratic(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The same as an N x N matrix of weights, in float64: (B, H, N, d) to (B, H, N, d)."""

    def phi(t: np.ndarray) -> np.ndarray:
        return np.where(t > 0, t + 1, np.exp(np.minimum(t, 0)))

    weights = np.einsum("bhnd,bhmd->bhnm", phi(q), phi(k)) / q.shape[2]
    return (weights @ v) / (weights.sum(-1, keepdims=True) + 1e-4)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 40), st.integers(1, 9)),
    spread=st.sampled_from([0.1, 0.5, 1.5]),
    seed=st.integers(0, 99),
)
def test_operator_is_its_definition(
    shape: tuple[int, int, int, int], spread: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    q, k, v = (random.normal(0, spread, shape) for _ in range(3))
    made = linear_attention(*(torch.from_numpy(t).float() for t in (q, k, v)))
    np.testing.assert_allclose(made.numpy(), quadratic(q, k, v), rtol=1e-3, atol=1e-4 * spread)


def test_operator_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 50, 8).unbind()
    with torch.autocast("cpu", torch.bfloat16):
        inside = linear_attention(q, k, v)
    assert torch.equal(inside, linear_attention(q, k, v))


def test_cross_attention_and_masks_are_refused() -> None:
    module, tokens = LinearAttention(8, 2), torch.zeros(1, 4, 8)
    for wrong in ({"encoder_hidden_states": tokens}, {"attention_mask": tokens}):
        with pytest.raises(ValueError, match="self-attention only"):
            module(tokens, **wrong)


@pytest.mark.parametrize(("mid_dim", "width"), [("absent", 8), (-1, None), (3, 3), (None, 8)])
def test_published_format(tmp_path: Path, mid_dim: object, width: int | None) -> None:
    entry = {"module_name": "a.attn1", "dim_n": 8, "heads": 2, "projection_mid_dim": mid_dim}
    if mid_dim == "absent":
        del entry["projection_mid_dim"]
    made = with_random_weights(LinFusionAdapter(modules_list=[entry]))
    made.save_pretrained(tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["modules_list"] == [entry]
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    projections = {"0.to_q.weight", "0.to_k.weight", "0.to_v.weight"}
    layers = [f"0.{name}.{i}" for name in ("to_q_", "to_k_") for i in "013"] if width else []
    shifts = {f"{layer}.{p}" for layer in layers for p in ("weight", "bias")}
    assert set(stored) == projections | shifts | {"0.to_out.0.weight", "0.to_out.0.bias"}
    if width:
        assert stored["0.to_q_.0.weight"].shape == (width, 8)
        assert stored["0.to_k_.3.weight"].shape == (8, width)

    read = LinFusionAdapter.from_pretrained(tmp_path, local_files_only=True)
    tokens = torch.randn(2, 5, 8)
    assert torch.equal(getattr(read, "0")(tokens), getattr(made, "0")(tokens))


def test_unknown_keys_of_an_entry_are_left_out() -> None:
    entry = {"module_name": "a.attn1", "dim_n": 8, "heads": 2, "comment": "of a later version"}
    (read,) = LinFusionAdapter(modules_list=[entry]).entries
    assert (read.module_name, read.projection_mid_dim) == ("a.attn1", None)


def test_mount_changes_and_unmount_restores_every_bit() -> None:
    unet = tiny_unet()
    names, before = list(unet.state_dict()), denoised(unet)
    adapter = with_random_weights(LinFusionAdapter.for_unet(unet))
    mount(unet, adapter)
    assert not torch.allclose(denoised(unet), before)
    unmount(unet)
    assert torch.equal(denoised(unet), before)
    assert list(unet.state_dict()) == names
    unmount(unet)  # nothing is mounted: nothing happens
    assert torch.equal(denoised(unet), before)


def test_mounted_again_from_disk_gives_the_same(tmp_path: Path) -> None:
    unet = tiny_unet()
    adapter = with_random_weights(LinFusionAdapter.for_unet(unet, mid_dim_scale=4))
    adapter.save_pretrained(tmp_path)
    mount(unet, adapter)
    wanted = denoised(unet)
    unmount(unet)
    mount(unet, LinFusionAdapter.from_pretrained(tmp_path, local_files_only=True))
    assert torch.equal(denoised(unet), wanted)


def test_fresh_adapter_starts_from_the_projections() -> None:
    unet = tiny_unet()
    adapter = LinFusionAdapter.for_unet(unet)
    attention = unet.get_submodule(adapter.entries[0].module_name)
    module = getattr(adapter, "0")
    for name in ("to_q", "to_k", "to_v"):
        assert torch.equal(getattr(module, name).weight, getattr(attention, name).weight)
    tokens = torch.randn(1, 6, 32)
    assert torch.equal(module.to_q_(tokens), torch.zeros_like(tokens))


@pytest.mark.parametrize("fault", ["width", "missing", "mounted"])
def test_misfit_is_refused_by_name(fault: str) -> None:
    unet = tiny_unet()
    adapter = LinFusionAdapter.for_unet(unet)
    first = adapter.entries[0].module_name
    if fault == "width":
        unet = tiny_unet(64)
    elif fault == "missing":
        adapter = LinFusionAdapter(modules_list=adapter.config["modules_list"][1:])
    else:
        mount(unet, adapter)
    before = denoised(unet)
    with pytest.raises(ValueError, match="does not fit") as caught:
        mount(unet, adapter)
    assert first in str(caught.value)
    assert torch.equal(denoised(unet), before)  # nothing was half replaced
