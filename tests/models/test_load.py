"""Loading the built-in model, and weights that are missing, damaged or of another model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hirescli.attention.linfusion import LinearAttention
from hirescli.errors import RunError
from hirescli.models.load import WEIGHTS, Model, load
from hirescli.models.registry import find_card
from hirescli.models.sums import SUMS, write_sums

CARD = find_card("builtin")
PARTS = ("unet", "linfusion", "vae", "scheduler")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the weights that may be damaged: large files are links."""
    for source in WEIGHTS.rglob("*"):
        if source.is_file() and source.name != SUMS:
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
    own = {n for n, _ in model.unet.named_modules() if n.endswith("attn1")}
    assert own
    assert linear(model) == set()
    with model.attending("full"):
        assert linear(model) == set()
    with model.attending("linear"):
        assert linear(model) == own
    assert linear(model) == set()
    assert model.autoencoder.config["latent_channels"] == CARD.latent_channels
    assert model.text.encoder.model.config.hidden_size == model.unet.config["cross_attention_dim"]


def linear(model: Model) -> set[str]:
    """The names of the linear attentions that are mounted."""
    return {n for n, m in model.unet.named_modules() if isinstance(m, LinearAttention)}


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


@pytest.mark.parametrize("part", PARTS[:3])
def test_a_pickle_is_refused(weights: Path, part: str) -> None:
    name = "diffusion_pytorch_model"
    (weights / part / f"{name}.safetensors").unlink()
    torch.save({}, weights / part / f"{name}.bin")
    assert part in refused(weights)


def test_sums_that_hold(weights: Path) -> None:
    write_sums(weights)
    lines = (weights / SUMS).read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        *("linfusion/config.json", "linfusion/diffusion_pytorch_model.safetensors"),
        "scheduler/scheduler_config.json",
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    ]
    load(CARD, dtype="float32", weights=weights)


@pytest.mark.parametrize("part", PARTS[:3])
def test_a_flipped_bit_is_named(weights: Path, part: str) -> None:
    write_sums(weights)
    path = weights / part / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    assert f"{part}/{path.name} is damaged" in refused(weights)


def test_weights_without_a_sum(weights: Path) -> None:
    write_sums(weights)
    lines = (weights / SUMS).read_text().splitlines(keepends=True)
    (weights / SUMS).write_text("".join(line for line in lines if "vae/diffusion" not in line))
    assert "vae/diffusion_pytorch_model.safetensors is not listed" in refused(weights)


def test_damaged_sums(weights: Path) -> None:
    (weights / SUMS).write_text("nonsense\n")
    assert f"{SUMS} is damaged" in refused(weights)


QUIET = """
from diffusers.utils import logging as diffusers
from transformers.utils import logging as transformers
before = [(m.get_verbosity(), m.is_progress_bar_enabled()) for m in (diffusers, transformers)]
from hirescli.models.load import load
from hirescli.models.registry import find_card
load(find_card("builtin"), dtype="float32")
after = [(m.get_verbosity(), m.is_progress_bar_enabled()) for m in (diffusers, transformers)]
assert before == after, (before, after)
"""


def test_loading_prints_nothing_and_leaves_the_libraries_as_they_were() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
