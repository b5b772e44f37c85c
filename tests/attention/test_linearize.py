"""`linearize` and `unlinearize`: by the base model, by folder; what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from linfusion_unets import (
    SD15,
    SD21,
    SDXL,
    denoised,
    tiny_unet,
    unweighted_unet,
    with_random_weights,
)
from safetensors.torch import load_file, save_file

import hirescli
from hirescli.attention.linfusion import LinearAttention, LinFusionAdapter, mount
from hirescli.errors import RequestError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def saved(folder: Path, mid_dim_scale: int = 4) -> Path:
    """An adapter for `tiny_unet`."""
    adapter = LinFusionAdapter.for_unet(tiny_unet(), mid_dim_scale=mid_dim_scale)
    with_random_weights(adapter).save_pretrained(folder)
    return folder


def identities(unet: UNet2DConditionModel) -> dict[str, int]:
    return {name: id(module) for name, module in unet.named_modules()}


# Mounted and restored


def test_mounts_and_restores_module_by_module(tmp_path: Path) -> None:
    unet, folder = tiny_unet(), saved(tmp_path)
    state = {key: value.clone() for key, value in unet.state_dict().items()}
    modules, before = identities(unet), denoised(unet)

    hirescli.linearize(unet, "linfusion", weights=folder)
    changed = denoised(unet)
    by_hand = tiny_unet()
    mount(by_hand, LinFusionAdapter.from_pretrained(folder, local_files_only=True))
    assert torch.equal(changed, denoised(by_hand))
    assert not torch.allclose(changed, before)

    hirescli.unlinearize(unet)
    assert identities(unet) == modules
    assert list(unet.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in unet.state_dict().items())
    assert torch.equal(denoised(unet), before)
    hirescli.unlinearize(unet)  # nothing is mounted: nothing happens
    assert torch.equal(denoised(unet), before)


def test_takes_a_pipeline_and_gives_the_adapter_back(tmp_path: Path) -> None:
    pipeline = SimpleNamespace(unet=tiny_unet())
    adapter = hirescli.linearize(pipeline, weights=str(saved(tmp_path / "a")))
    adapter.save_pretrained(tmp_path / "b")
    for name in ("config.json", WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    hirescli.unlinearize(pipeline)
    assert not any(isinstance(module, LinearAttention) for module in pipeline.unet.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_modules_follow_the_base(dtype: torch.dtype, tmp_path: Path) -> None:
    unet = tiny_unet().to(dtype).requires_grad_(False)
    adapter = hirescli.linearize(unet, weights=saved(tmp_path))
    assert {p.dtype for p in adapter.parameters()} == {dtype}
    assert not any(p.requires_grad for p in adapter.parameters())
    assert bool(denoised(unet).isfinite().all())


def test_modules_follow_the_base_to_its_device(tmp_path: Path) -> None:
    unet = tiny_unet().to("meta")
    adapter = hirescli.linearize(unet, weights=saved(tmp_path))
    assert {p.device.type for p in adapter.parameters()} == {"meta"}


# The published format


@pytest.mark.parametrize(
    ("mid_dim", "width"), [("absent", 8), (None, 8), (0, 8), (3, 3), (-1, None)]
)
def test_folders_are_written_as_published(
    tmp_path: Path, mid_dim: object, width: int | None
) -> None:
    """facts of the format, word by word."""
    entry = {"module_name": "mid.attn1", "dim_n": 8, "heads": 2, "projection_mid_dim": mid_dim}
    if mid_dim == "absent":
        del entry["projection_mid_dim"]
    LinFusionAdapter(modules_list=[entry]).save_pretrained(tmp_path)

    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("_diffusers_version")
    assert config == {"_class_name": "LinFusion", "modules_list": [entry]}
    shapes = {key: tuple(value.shape) for key, value in load_file(tmp_path / WEIGHTS).items()}
    wanted: dict[str, tuple[int, ...]] = {
        "0.to_q.weight": (8, 8),
        "0.to_k.weight": (8, 8),
        "0.to_v.weight": (8, 8),
        "0.to_out.0.weight": (8, 8),
        "0.to_out.0.bias": (8,),
    }
    for name in ("to_q_", "to_k_"):
        if width is not None:
            wanted |= {
                f"0.{name}.0.weight": (width, 8),
                f"0.{name}.0.bias": (width,),
                f"0.{name}.1.weight": (width,),
                f"0.{name}.1.bias": (width,),
                f"0.{name}.3.weight": (8, width),
                f"0.{name}.3.bias": (8,),
            }
    assert shapes == wanted


@torch.no_grad()
@pytest.mark.parametrize("mid_dim", [3, -1])
def test_a_module_computes_what_the_paper_says(mid_dim: int) -> None:
    """From its weights alone, in float64. With -1 the shift is the identity: x + x."""
    entry = {"module_name": "attn1", "dim_n": 8, "heads": 2, "projection_mid_dim": mid_dim}
    adapter = with_random_weights(LinFusionAdapter(modules_list=[entry]))
    w = {key.removeprefix("0."): value.double() for key, value in adapter.state_dict().items()}
    x = torch.randn(2, 11, 8, generator=torch.Generator().manual_seed(7))
    made = getattr(adapter, "0")(x)

    def shift(x: torch.Tensor, name: str) -> torch.Tensor:
        if mid_dim == -1:
            return x
        y = x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"]
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        y = y * w[f"{name}.1.weight"] + w[f"{name}.1.bias"]
        y = torch.where(y > 0, y, 0.01 * y)
        return y @ w[f"{name}.3.weight"].T + w[f"{name}.3.bias"]

    x = x.double()
    q = (x + shift(x, "to_q_")) @ w["to_q.weight"].T
    k = (x + shift(x, "to_k_")) @ w["to_k.weight"].T
    v = x @ w["to_v.weight"].T
    outputs = []
    for head in (slice(0, 4), slice(4, 8)):
        phi_q, phi_k = (torch.where(t > 0, t + 1, t.exp()) for t in (q[..., head], k[..., head]))
        weights = phi_q @ phi_k.mT / 11
        outputs.append(weights @ v[..., head] / (weights.sum(-1, keepdim=True) + 1e-4))
    wanted = torch.cat(outputs, -1) @ w["to_out.0.weight"].T + w["to_out.0.bias"]
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-5)


def renamed_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    more = {"_class_name": "GeneralLinearAttention", "_name_or_path": "x", "scale": [1, 2]}
    for entry in config["modules_list"]:
        entry["comment"] = "of a later version"
    (folder / "config.json").write_text(json.dumps({**config, **more}))


def in_half_precision(folder: Path) -> None:
    tensors = {key: value.half() for key, value in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.fp16.safetensors")
    (folder / WEIGHTS).unlink()


def in_shards(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {}
    for number, part in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        name = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / name)
        places |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("change", [renamed_class, in_half_precision, in_shards])
def test_folders_of_others(change: Callable[[Path], None], tmp_path: Path) -> None:
    plain, other = tiny_unet(), tiny_unet()
    hirescli.linearize(plain, weights=saved(tmp_path / "plain"))
    change(saved(tmp_path / "other"))
    hirescli.linearize(other, weights=tmp_path / "other")
    torch.testing.assert_close(denoised(other), denoised(plain), rtol=0, atol=2e-3)


# Found by the base model


@pytest.mark.parametrize(
    ("config", "repository"),
    [
        (SD15, "Yuanshi/LinFusion-1-5"),
        (SD21, "Yuanshi/LinFusion-2-1"),
        (SDXL, "Yuanshi/LinFusion-XL"),
    ],
)
def test_offline_names_repository_and_file(
    config: dict[str, Any], repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    unet = unweighted_unet(config)
    modules = identities(unet)
    with pytest.raises(RequestError, match=f"config.json of the adapter {repository}"):
        hirescli.linearize(unet)
    assert identities(unet) == modules


def test_a_repository_in_the_cache_is_used_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's library lays it out: files of the one commit that `refs/main` names."""
    commit = "0123456789" * 4
    repository = tmp_path / "models--some--adapter"
    saved(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    unet = tiny_unet()
    hirescli.linearize(unet, weights="some/adapter")
    plain = tiny_unet()
    hirescli.linearize(plain, weights=saved(tmp_path / "folder"))
    assert torch.equal(denoised(unet), denoised(plain))
    (repository / "snapshots" / commit / "config.json").unlink()
    with pytest.raises(RequestError, match=r"config\.json of the adapter some/adapter"):
        hirescli.linearize(tiny_unet(), weights="some/adapter")


def test_the_built_in_model_finds_its_own() -> None:
    from hirescli.models.load import load
    from hirescli.models.registry import find_card

    model = load(find_card("builtin"), dtype="float32")
    with model.attending("linear"):
        mounted = {key: value.clone() for key, value in model.unet.state_dict().items()}
    hirescli.linearize(model)
    made = model.unet.state_dict()
    assert made.keys() == mounted.keys()
    assert all(torch.equal(value, mounted[key]) for key, value in made.items())
    hirescli.unlinearize(model)
    assert model.unet.state_dict().keys() != mounted.keys()


def test_an_unknown_base_needs_a_name() -> None:
    with pytest.raises(RequestError, match=r"SD 1\.5, SD 2\.1, SDXL .* weights="):
        hirescli.linearize(tiny_unet())


# Refused, and nothing replaced


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"0.to_q.weight": [1.0]}))


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


def page(folder: Path) -> None:
    (folder / WEIGHTS).write_text("<!doctype html><title>404</title>")


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])


def trailing(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")


def emptied(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def without_a_key(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["1.to_k_.1.bias"]
    save_file(tensors, folder / WEIGHTS)


def with_a_key_more(folder: Path) -> None:
    save_file({**load_file(folder / WEIGHTS), "9.to_q.weight": torch.ones(2)}, folder / WEIGHTS)


def misshapen(folder: Path) -> None:
    changed = {"0.to_v.weight": torch.ones(32, 16)}
    save_file({**load_file(folder / WEIGHTS), **changed}, folder / WEIGHTS)


def flipped(folder: Path) -> None:
    from hirescli.models.sums import write_sums

    write_sums(folder)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def other_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}')


def impossible(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["modules_list"][0]["heads"] = 3
    (folder / "config.json").write_text(json.dumps(config))


def twice(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["modules_list"][1] = config["modules_list"][0]
    (folder / "config.json").write_text(json.dumps(config))


def of_integers(folder: Path) -> None:
    changed = {"0.to_v.weight": torch.ones(32, 32, dtype=torch.int8)}
    save_file({**load_file(folder / WEIGHTS), **changed}, folder / WEIGHTS)


def without_a_shard(folder: Path) -> None:
    in_shards(folder)
    (folder / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (pickled, rf"{WEIGHTS} is a pickle"),
    (only_a_pickle, r"diffusion_pytorch_model\.bin but no .* a pickle could run"),
    (pointer, rf"{WEIGHTS} is a pointer of git-lfs"),
    (page, rf"{WEIGHTS} is a web page"),
    (truncated, rf"{WEIGHTS} is truncated: tensor 3\."),
    (trailing, rf"{WEIGHTS} has 4 bytes behind its last tensor"),
    (emptied, rf"{WEIGHTS} is empty"),
    (without_a_key, rf"{WEIGHTS} is not complete: 1\.to_k_\.1\.bias is missing"),
    (with_a_key_more, rf"{WEIGHTS} holds 9\.to_q\.weight"),
    (misshapen, rf"{WEIGHTS}: 0\.to_v\.weight is \(32, 16\), .* \(32, 32\)"),
    (flipped, rf"{WEIGHTS} is damaged"),
    (no_config, r"config\.json is missing"),
    (other_config, r"config\.json lists no modules"),
    (impossible, r"config\.json: entry 0 of `modules_list`"),
    (twice, r"config\.json lists down_blocks.* 2 times"),
    (of_integers, rf"{WEIGHTS}: 0\.to_v\.weight is stored as I8"),
    (without_a_shard, r"1 of 00002 parts of diffusion_pytorch_model-00001"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda x: getattr(x, "__name__", ""))
def test_damaged_folders_are_refused(
    fault: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    unet, folder = tiny_unet(), saved(tmp_path)
    modules = identities(unet)
    fault(folder)
    with pytest.raises(RequestError, match=message):
        hirescli.linearize(unet, weights=folder)
    assert identities(unet) == modules


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    unet = tiny_unet(64)
    modules = identities(unet)
    with pytest.raises(RequestError, match=r"does not fit .*attn1 is \(64, 4\) in the model and"):
        hirescli.linearize(unet, weights=saved(tmp_path))
    assert identities(unet) == modules


def test_a_second_call_is_refused(tmp_path: Path) -> None:
    unet, folder = tiny_unet(), saved(tmp_path)
    hirescli.linearize(unet, weights=folder)
    with pytest.raises(RequestError, match=r"attn1 is linear attention already"):
        hirescli.linearize(unet, weights=folder)


def test_unknown_methods_and_components_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r'no linear attention "mamba"; there is "linfusion"'):
        hirescli.linearize(tiny_unet(), "mamba")
    with pytest.raises(RequestError, match="SimpleNamespace has no UNet"):
        hirescli.linearize(SimpleNamespace(transformer=torch.nn.Linear(2, 2)))
    with pytest.raises(RequestError, match="Linear has no self-attention"):
        hirescli.linearize(torch.nn.Linear(2, 2))
    with pytest.raises(RequestError, match=r"no adapter folder \./adapter"):
        hirescli.linearize(tiny_unet(), weights="./adapter")
    with pytest.raises(RequestError, match="no adapter folder"):
        hirescli.linearize(tiny_unet(), weights=tmp_path / "gone")


def test_streamed_models_are_refused(tmp_path: Path) -> None:
    unet, folder = tiny_unet(), saved(tmp_path)
    with hirescli.stream(unet), pytest.raises(RequestError, match=r"before hirescli\.stream"):
        hirescli.linearize(unet, weights=folder)
    hirescli.linearize(unet, weights=folder)
    with hirescli.stream(unet), pytest.raises(RequestError, match=r"before hirescli\.stream"):
        hirescli.unlinearize(unet)


@pytest.mark.parametrize("mid_dim", [-1, 8])
def test_streamed_in_bands_gives_the_same(mid_dim: int, tmp_path: Path) -> None:
    unet = tiny_unet()
    entries = LinFusionAdapter.for_unet(unet).config["modules_list"]
    changed = [{**entry, "projection_mid_dim": mid_dim} for entry in entries]
    with_random_weights(LinFusionAdapter(modules_list=changed)).save_pretrained(tmp_path)
    hirescli.linearize(unet, weights=tmp_path)
    wanted = denoised(unet)
    with hirescli.stream(unet, rows=2):
        made = denoised(unet)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


def test_a_lora_is_not_lost_silently(tmp_path: Path) -> None:
    from peft import LoraConfig

    unet, folder = tiny_unet(), saved(tmp_path)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "style")
    with pytest.raises(RequestError, match=r"attn1\.to_q has a LoRA"):
        hirescli.linearize(unet, weights=folder)
    unet.unload_lora()
    hirescli.linearize(unet, weights=folder)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "style")
    with pytest.raises(RequestError, match=r"attn1\.to_q has a LoRA"):
        hirescli.unlinearize(unet)


def test_offloaded_and_quantised_weights_are_refused(tmp_path: Path) -> None:
    from accelerate import cpu_offload

    unet, folder = tiny_unet(), saved(tmp_path)
    cpu_offload(unet, "cpu")
    with pytest.raises(RequestError, match="weights-offload hook"):
        hirescli.linearize(unet, weights=folder)
    with pytest.raises(RequestError, match="float8_e4m3fn"):
        hirescli.linearize(tiny_unet().to(torch.float8_e4m3fn), weights=folder)
