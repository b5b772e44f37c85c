"""IP-Adapters for FLUX: which fit, where their image encoder is, and what plans count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import (
    flux_folder,
    flux_ip_adapter_folder,
    image_encoder_folder,
    ip_adapter_folder,
    sd15_folder,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from hirescli.errors import RequestError
from hirescli.models.load import load
from hirescli.models.plugin_sources import find_image_adapter
from hirescli.models.plugins import image_embeds, unmount_image_adapter
from hirescli.models.registry import find
from hirescli.models.sources import ModelSource
from hirescli.planning.machine import Device, Machine
from hirescli.planning.plan import Plan, make_plan
from hirescli.recipe import Recipe

FILE = "ip_adapter.safetensors"
PICTURE = {"path": "mood.png", "width_px": 512, "height_px": 512}
ADAPTER = 2 * 490_874_880  # in bfloat16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    flux_folder(root / "flux")
    sd15_folder(root / "sd15")
    flux_ip_adapter_folder(root / "flux-ip")
    ip_adapter_folder(root / "sd15-ip", "sd15")
    return root


@pytest.fixture(scope="module")
def model(root: Path) -> ModelSource:
    return find(str(root / "flux"))


# Which fit


def renamed(states: dict[str, Any]) -> dict[str, Any]:
    """By diffusers' names."""
    words = {
        "double_blocks.": "ip_adapter.", "processor.": "", "ip_adapter_proj_model": "image_proj",
        "ip_adapter_double_stream_k_proj": "to_k_ip", "ip_adapter_double_stream_v_proj": "to_v_ip",
    }  # fmt: skip
    for old, new in words.items():
        states = {name.replace(old, new): each for name, each in states.items()}
    return states


@pytest.mark.parametrize("naming", [dict, renamed], ids=["published", "diffusers"])
def test_an_adapter_is_mounted_and_taken_out(
    root: Path, model: ModelSource, tmp_path: Path, naming: Callable[..., Any]
) -> None:
    save_file(naming(load_file(root / "flux-ip" / FILE)), tmp_path / FILE)
    image_encoder_folder(tmp_path / "image_encoder")
    loaded = load(model, dtype="float32", linear=False)
    before = set(loaded.unet.state_dict())
    source = find_image_adapter(str(tmp_path), model=model)
    pictures = [(Image.new("RGB", (40, 30), colour), 0.5) for colour in ("red", "blue")]
    red, blue = image_embeds(loaded, source, pictures)
    assert red.shape == blue.shape == (1, 1, 16)
    assert not torch.allclose(red, blue)
    assert loaded.unet.transformer_blocks[0].attn.processor.scale == [0.5, 0.5]
    unmount_image_adapter(loaded)
    assert set(loaded.unet.state_dict()) == before


@pytest.mark.parametrize(
    ("family", "adapter", "said"),
    [
        ("flux", "sd15-ip", r"adapter for a Stable Diffusion model with a UNet; .*`flux` is FLUX"),
        ("sd15", "flux-ip", r"picture adapter for FLUX .*`sd15`"),
    ],
)
def test_another_family_is_refused_by_name(
    root: Path, family: str, adapter: str, said: str
) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        find_image_adapter(str(root / adapter), model=find(str(root / family)))
    assert adapter in str(caught.value)


def without(states: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: each for name, each in states.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {n: e[:, :-1] if e.ndim == 2 else e for n, e in s.items()}, "another model"),
        (lambda s: without(s, "v_proj.bias"), r"to_v_ip.bias is of shape none, not \(16,\)"),
        (lambda s: without(s, "proj_model"), r"image_proj.proj.weight is of shape none"),
        (lambda s: without(s, "double_blocks"), "is no IP-Adapter"),
        (
            lambda s: s | {n.replace(".0.", ".1."): e.clone() for n, e in s.items()},
            r"has no block for ip_adapter.1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    root: Path, model: ModelSource, tmp_path: Path, change: Callable[..., Any], said: str
) -> None:
    made = change(load_file(root / "flux-ip" / FILE))
    save_file({name: each.contiguous() for name, each in made.items()}, tmp_path / FILE)
    image_encoder_folder(tmp_path / "image_encoder")
    with pytest.raises(RequestError, match=said) as caught:
        find_image_adapter(str(tmp_path), model=model)
    assert str(tmp_path / FILE) in str(caught.value)


# The image encoder


def test_another_image_encoder_is_refused(root: Path, model: ModelSource, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((root / "flux-ip" / FILE).read_bytes())
    image_encoder_folder(tmp_path / "image_encoder", channels=24)
    with pytest.raises(RequestError, match=r"reads 16 channels of a picture.* gives 24"):
        find_image_adapter(str(tmp_path), model=model)


# What plans count


def plan(pictures: int) -> Plan:
    machine = Machine(2, 128 * 10**9, (Device("a GPU", 80 * 10**9),), lambda _: 10**12)
    asked = {"prompt": "a", "model": "flux-dev", "size": 1024, "attention": "linear"}
    recipe = Recipe.from_fragments(asked, {"image_prompts": [PICTURE] * pictures})
    return make_plan(recipe, find("flux-dev", weights=False).card, machine=machine)


def test_plans_count_weights_and_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 tokens of 3072 channels, read by 4096 of the picture in 19 blocks, 28 times."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    none, two = (plan(count).stage_costs[0] for count in (0, 2))
    assert two.memory.base_bytes - none.memory.base_bytes == 2 * ADAPTER
    least = 28 * 19 * 4 * 4096 * 32 * 3072
    flops = [sum(c.flops for c in each.components) for each in (none, two)]
    assert least <= flops[1] - flops[0] <= 1.2 * least
    (kept,) = tmp_path.rglob("*.json.gz")
    assert kept.name == "flux.denoiser-ip2.linear.bfloat16.json.gz"


def test_published_sizes_are_those_of_the_modules() -> None:
    from diffusers.models.embeddings import ImageProjection
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(vision)
        parts = [FluxIPAdapterAttnProcessor(3072, 4096) for _ in range(19)]
        projection = ImageProjection(768, 4096, 4)
    adapter = sum(p.numel() for part in (*parts, projection) for p in part.parameters())
    assert 2 * adapter == ADAPTER
    for name in ("flux-dev", "flux-schnell"):
        assert dict(find(name, weights=False).card.image_prompts) == {
            "image_encoder": sum(p.numel() for p in encoder.parameters()),
            "image_adapter": adapter,
        }
