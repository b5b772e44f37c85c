"""Single files: the family from the header, the same modules as from a folder, no network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from folders import FOLDERS
from safetensors.torch import load_file, save_file
from single import original_names, sparse_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hirescli.errors import RequestError
from hirescli.models.families import CONFIGS
from hirescli.models.load import Model, load
from hirescli.models.registry import find, find_card

FAMILIES = ("sd15", "sd21", "sdxl")


def real(family: str) -> dict[str, torch.Tensor]:
    """Names and shapes of the published model, from the packaged configs, without numbers."""

    def config(part: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((CONFIGS / family / part / "config.json").read_text())
        return read

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config("unet"))
        vae = AutoencoderKL.from_config(config("vae"))
        text: Any = CLIPTextModel(CLIPTextConfig(**config("text_encoder")))
        text_2: Any = None
        if family == "sdxl":
            text_2 = CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2")))
    states = None if text_2 is None else text_2.state_dict()
    return original_names(family, unet, vae, text.state_dict(), states)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_is_found_by_the_header_alone(family: str, tmp_path: Path) -> None:
    source = find(str(sparse_file(tmp_path / "model.safetensors", real(family), {})))
    assert (source.kind, source.card.name) == ("file", "model")
    card = find_card(family)
    # As many numbers as the card says: each tensor has its place.
    assert dict(source.card.parameters) == dict(card.parameters)
    assert source.card.native_px == card.native_px
    assert source.adapter is not None
    assert source.adapter.hub_id == card.adapter_id
    assert source.card.trace("denoiser", "bfloat16") == card.trace("denoiser", "bfloat16")


@pytest.fixture(params=FAMILIES)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, Path]:
    """A small folder's model, and the same weights as a single file."""
    family = request.param
    folder = FOLDERS[family](tmp_path / "folder")
    model = load(find(str(folder)), dtype="float32", linear=False)
    texts = [
        load_file(folder / name / "model.safetensors")
        for name in ("text_encoder", "text_encoder_2")
        if (folder / name).is_dir()
    ]
    second = texts[1] if len(texts) == 2 else None
    states = original_names(family, model.unet, model.autoencoder, texts[0], second)
    states["model_ema.decay"] = torch.ones(())  # what trainers leave is not read
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in states.items()}, file)
    return model, file


def from_file(model: Model, file: Path, **changes: Any) -> Model:
    source = replace(model.source, kind="file", path=file, weights=(), **changes)
    return load(source, dtype="float32", linear=False)


def test_a_file_gives_the_modules_of_the_folder(small: tuple[Model, Path]) -> None:
    model, file = small
    single = from_file(model, file)
    pairs = [(single.unet, model.unet), (single.autoencoder, model.autoencoder)]
    mine, theirs = single.text.components, model.text.components  # type: ignore[attr-defined]
    pairs += [(mine[name], theirs[name]) for name in theirs if name.startswith("text_encoder")]
    for one, other in pairs:
        states = other.state_dict()
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, states[name]), name
        assert not one.training
    assert mine["tokenizer"].model_max_length == 77
    assert single.scheduler.config.prediction_type == model.scheduler.config.prediction_type


def test_what_a_file_says_of_its_noise_is_heard(small: tuple[Model, Path]) -> None:
    model, file = small
    changes = (("prediction_type", "v_prediction"),)
    single = from_file(model, file, scheduler_changes=changes)
    assert single.scheduler.config.prediction_type == "v_prediction"
    assert single.scheduler_named("dpm++").config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("part", "prefix"),
    [("unet", "model.diffusion_model.out.2"), ("vae", "first_stage_model.decoder.conv_out")],
)
def test_missing_tensors_are_named(
    small: tuple[Model, Path], part: str, prefix: str, tmp_path: Path
) -> None:
    model, file = small
    kept = {n: t for n, t in load_file(file).items() if not n.startswith(prefix)}
    broken = tmp_path / "broken.safetensors"
    save_file(kept, broken)
    with pytest.raises(RequestError) as caught:
        from_file(model, broken)
    assert str(broken) in str(caught.value)
    assert "conv_out" in str(caught.value)
    assert part in str(caught.value)


def test_wrong_shapes_are_named(small: tuple[Model, Path], tmp_path: Path) -> None:
    model, file = small
    states = load_file(file)
    name = "model.diffusion_model.out.2.weight"
    states[name] = states[name][:, :-1].contiguous()
    broken = tmp_path / "broken.safetensors"
    save_file(states, broken)
    with pytest.raises(RequestError, match="conv_out") as caught:
        from_file(model, broken)
    assert str(broken) in str(caught.value)


def edited(states: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    first = "model.diffusion_model.input_blocks.0.0.weight"
    if how == "inpainting":
        return states | {first: torch.empty(320, 9, 3, 3, device="meta")}
    if how == "refiner":
        return {
            n: torch.empty(t.shape[0], 1280, device="meta") if "attn2.to_k" in n else t
            for n, t in states.items()
        }
    lost = {"vae": "first_stage_model.", "text_encoder": "cond_stage_model."}[how]
    return {n: t for n, t in states.items() if not n.startswith(lost)}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("inpainting", "9 channels"),
        ("refiner", "refiner of SDXL"),
        ("vae", "has no vae"),
        ("text_encoder", "has no text_encoder"),
    ],
)
def test_models_that_do_not_run_are_named(how: str, said: str, tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "model.safetensors", edited(real("sd15"), how), {})
    with pytest.raises(RequestError, match=said) as caught:
        find(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["unet.a.lora_A.weight", "unet.a.lora_B.weight"], "--lora"),
        (["control_model.time_embed.0.weight"], "--control"),
        (["0.to_q_.0.weight"], "--adapter"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["down_blocks.0.resnets.0.conv1.weight"], "folder"),
        (["something"], "no model that is known"),
    ],
)
def test_files_of_something_else_are_named(names: list[str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    with pytest.raises(RequestError, match=said):
        find(str(path))


def test_v_prediction_in_the_file(tmp_path: Path) -> None:
    states = real("sd15") | {"v_pred": torch.empty(0, device="meta")}
    source = find(str(sparse_file(tmp_path / "a.safetensors", states, {})))
    assert dict(source.scheduler_changes) == {"prediction_type": "v_prediction"}
    said = {"modelspec.prediction_type": "epsilon"}
    source = find(str(sparse_file(tmp_path / "b.safetensors", real("sd21"), said)))
    assert dict(source.scheduler_changes) == {"prediction_type": "epsilon"}


@pytest.mark.slow
def test_stable_diffusion_loads_at_its_real_shape(tmp_path: Path) -> None:
    path = sparse_file(tmp_path / "model.safetensors", real("sd15"), {})
    model = load(find(str(path)), dtype="bfloat16", linear=False)
    assert sum(p.numel() for p in model.unet.parameters()) == 859_520_964
    assert model.unet.dtype == torch.bfloat16
    states = model.text.encode("a photo of a cat", "")
    assert states["prompt_embeds"].shape == (1, 77, 768)
