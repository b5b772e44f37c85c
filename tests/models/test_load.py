"""Loading the built-in model, and weights that are missing, damaged or of another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hirescli.attention.linfusion import LinearAttention
from hirescli.errors import RunError
from hirescli.models.load import WEIGHTS, load
from hirescli.models.registry import find_card

CARD = find_card("builtin")
PARTS = ("unet", "linfusion", "vae", "scheduler")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the weights that may be damaged: large files are links."""
    for source in WEIGHTS.rglob("*"):
        if source.is_file():
            target = tmp_path / "weights" / source.relative_to(WEIGHTS)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".json":
                shutil.copy(source, target)
            else:
                target.symlink_to(source)
    return tmp_path / "weights"


def test_loads_ready_to_run(weights: Path) -> None:
    model = load(CARD, dtype="bfloat16", weights=weights)
    assert model.unet.dtype == model.autoencoder.dtype == torch.bfloat16
    assert not model.unet.training
    assert not any(p.requires_grad for p in model.unet.parameters())
    replaced = {n for n, m in model.unet.named_modules() if isinstance(m, LinearAttention)}
    assert replaced
    assert replaced == {n for n, _ in model.unet.named_modules() if n.endswith("attn1")}
    assert model.autoencoder.halo_latent_rows == CARD.halo_latent_rows
    assert model.autoencoder.config["latent_channels"] == CARD.latent_channels
    assert model.text.model.config.hidden_size == model.unet.config["cross_attention_dim"]


def refused(weights: Path) -> str:
    with pytest.raises(RunError) as caught:
        load(CARD, dtype="float32", weights=weights)
    message = str(caught.value)
    assert f"`{CARD.name}`" in message
    assert str(weights) in message
    assert "install the package again" in message
    return message


@pytest.mark.parametrize("part", PARTS)
def test_missing_part_is_named(weights: Path, part: str) -> None:
    shutil.rmtree(weights / part)
    assert part in refused(weights)


@pytest.mark.parametrize("part", PARTS[:3])
def test_missing_weights_are_named(weights: Path, part: str) -> None:
    (weights / part / "diffusion_pytorch_model.safetensors").unlink()
    assert part in refused(weights)


def test_all_missing(tmp_path: Path) -> None:
    refused(tmp_path / "nothing")


@pytest.mark.parametrize("part", PARTS[:3])
def test_truncated_weights(weights: Path, part: str) -> None:
    path = weights / part / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    refused(weights)


@pytest.mark.parametrize("part", PARTS)
def test_config_that_is_no_json(weights: Path, part: str) -> None:
    (path,) = (weights / part).glob("*.json")
    path.write_text("{")
    refused(weights)


def test_adapter_of_another_model(weights: Path) -> None:
    path = weights / "linfusion" / "config.json"
    config = json.loads(path.read_text())
    name = config["modules_list"][0]["module_name"]
    config["modules_list"][0]["module_name"] = "elsewhere.attn1"
    path.write_text(json.dumps(config))
    message = refused(weights)
    assert "elsewhere.attn1" in message or name in message


def test_weights_of_another_size(weights: Path) -> None:
    path = weights / "vae" / "config.json"
    config = json.loads(path.read_text())
    config["decoder_channels"] = [64, 80, 32]
    path.write_text(json.dumps(config))
    refused(weights)


def test_weights_with_tensors_missing(weights: Path) -> None:
    path = weights / "vae" / "config.json"
    config = json.loads(path.read_text())
    config["decoder_blocks"] = [5, 2, 1]
    path.write_text(json.dumps(config))
    refused(weights)
