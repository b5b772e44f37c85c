"""CLEAR's weight files: written, read, found by name, refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from clear_models import flux, flux_inputs, made, sd3, sd3_inputs
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hirescli
from hirescli.attention.clear_mount import mounted
from hirescli.attention.clear_published import PUBLISHED, REPOSITORY, Variant, of_file, published
from hirescli.attention.clear_weights import find_weights, save_clear
from hirescli.errors import RequestError
from hirescli.models.safetensors_check import WeightsError


def saved(path: Path, transformer: Any = None, **settings: Any) -> Path:
    """Weights for `flux()` or another, that are not its own."""
    transformer = transformer or flux()
    adapter = hirescli.linearize(transformer, "clear", weights="own", **{"window": 4, **settings})
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for p in adapter.parameters().values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    save_clear(transformer, path)
    return path


# Written and read


@pytest.mark.parametrize(
    ("model", "inputs", "count"), [(flux, flux_inputs, 20), (sd3, sd3_inputs, 32)]
)
def test_what_is_written_is_what_was_there(
    tmp_path: Path, model: Any, inputs: Any, count: int
) -> None:
    trained, given = model(), inputs(8, 12)
    path = saved(tmp_path / "a.safetensors", trained, down_factor=2)
    wanted = made(trained, given)
    assert len(load_file(path)) == count + (3 if model is flux else 4)

    transformer = model()
    own = made(transformer, given)
    adapter = hirescli.linearize(transformer, "clear", weights=str(path))
    assert (adapter.settings.window, adapter.settings.down_factor) == (4, 2)
    assert torch.equal(made(transformer, given), wanted)
    hirescli.unlinearize(transformer)
    assert torch.equal(made(transformer, given), own)
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    transformer = flux()
    paths = [saved(tmp_path / "a.safetensors", transformer, down_factor=2)]
    for number in range(4):  # words of a header have no order of their own
        paths.append(tmp_path / f"{number}.safetensors")
        save_clear(transformer, paths[-1])
    assert len({path.read_bytes() for path in paths}) == 1


def test_keys_are_those_of_the_published_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", down_factor=4)
    with safe_open(path, "pt") as file:
        keys, words = set(file.keys()), file.metadata()
    assert words == {"format": "pt", "clear_window": "4", "clear_down_factor": "4"}
    wanted = {
        "transformer_blocks.0.attn.to_out.0.weight",
        "transformer_blocks.0.attn.to_out.0.bias",
    }
    for block in (
        "transformer_blocks.0",
        "single_transformer_blocks.0",
        "single_transformer_blocks.1",
    ):
        for name in ("to_q", "to_k", "to_v"):
            wanted |= {f"{block}.attn.{name}.weight", f"{block}.attn.{name}.bias"}
        wanted.add(f"{block}.attn.processor.spatial_weight")
    assert keys == wanted


def test_files_are_a_part_of_the_state_dict(tmp_path: Path) -> None:
    """So that diffusers' own loading takes them, once CLEAR's processors are there."""
    transformer = flux()
    path = saved(tmp_path / "a.safetensors", transformer, down_factor=2)
    state = transformer.state_dict()
    assert all(torch.equal(state[key], value) for key, value in load_file(path).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_take_the_dtype_of_the_model(tmp_path: Path, dtype: torch.dtype) -> None:
    path, transformer = saved(tmp_path / "a.safetensors", down_factor=2), flux().to(dtype)
    adapter = hirescli.linearize(transformer, "clear", weights=path)
    assert {p.dtype for p in adapter.parameters().values()} == {dtype}


def test_published_files_say_their_settings_by_name(tmp_path: Path) -> None:
    """They have no metadata of ours."""
    path = saved(tmp_path / "own.safetensors", window=8, down_factor=4)
    bare = tmp_path / "clear_local_8_down_4.safetensors"
    save_file(load_file(path), bare)
    adapter = hirescli.linearize(flux(), "clear", weights=bare)
    assert (adapter.settings.window, adapter.settings.down_factor) == (8, 4)
    other = bare.rename(tmp_path / "other.safetensors")
    adapter = hirescli.linearize(flux(), "clear", weights=other, window=5, down_factor=4)
    assert adapter.settings.window == 5


def test_save_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    transformer = flux()
    with pytest.raises(RequestError, match="no CLEAR to save"):
        save_clear(transformer, tmp_path / "a.safetensors")
    hirescli.linearize(transformer, "clear", weights="own")
    with pytest.raises(RequestError, match=r"end in \.safetensors"):
        save_clear(transformer, tmp_path / "a.pt")
    with pytest.raises(RequestError, match="does not exist"):
        save_clear(transformer, tmp_path / "there" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


# Names


def test_names_and_files_are_those_published() -> None:
    names = ["clear-8", "clear-16", "clear-32", "clear-8-down-4", "clear-16-down-4"]
    files = ["clear_local_8", "clear_local_16", "clear_local_32", "clear_local_8_down_4",
             "clear_local_16_down_4"]  # fmt: skip
    assert [each.name for each in PUBLISHED] == names
    assert [each.file for each in PUBLISHED] == [f"{file}.safetensors" for file in files]
    assert [published(name) for name in names] == list(PUBLISHED)
    assert [of_file(each.file) for each in PUBLISHED] == list(PUBLISHED)
    for name in (
        "clear-12",
        "clear-32-down-4",
        "clear",
        "clear-08",
        "clear-8-down-1",
        "linfusion",
    ):
        assert published(name) is None


def cached(folder: Path, repository: str, path: Path, name: str) -> None:
    """A cache of the hub's library with one file of one repository."""
    root = folder / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    (snapshot / name).write_bytes(path.read_bytes())


def test_weights_come_from_the_hub_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hirescli.attention.clear_weights._FLUX_LAYERS", {"num_layers": 1})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = saved(tmp_path / "a.safetensors", window=8)
    for repository in (REPOSITORY, "me/mine"):
        cached(tmp_path / "cache", repository, path, "clear_local_8.safetensors")
    ways: list[dict[str, Any]] = [
        {"weights": "clear-8"}, {"window": 8}, {"weights": "me/mine", "window": 8},
    ]  # fmt: skip
    for settings in ways:
        adapter = hirescli.linearize(flux(), "clear", **settings)
        assert adapter.settings.window == 8
        key = "transformer_blocks.0.attn.to_q.weight"
        assert torch.equal(adapter.parameters()[key], load_file(path)[key])
    with pytest.raises(RequestError, match=r"clear_local_32\.safetensors of .*HF_HUB_OFFLINE"):
        hirescli.linearize(flux(), "clear", weights="clear-32")
    with pytest.raises(RequestError, match=r"he/his.*clear_local_16\.safetensors is missing"):
        hirescli.linearize(flux(), "clear", weights="he/his")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"weights": "clear-16", "window": 8}, '"clear-16" was made for window 16, not 8'),
        ({"weights": "clear-16", "down_factor": 4}, "made for down factor 1, not 4"),
        ({"weights": "clear-12"}, "no CLEAR weights clear-12; .*clear-16-down-4"),
        ({"weights": Path("me/mine")}, "no CLEAR weights me/mine"),
        ({}, "no CLEAR weights are published for this FluxTransformer2DModel"),
    ],
)
def test_names_that_do_not_do_are_refused(settings: dict[str, Any], told: str) -> None:
    transformer = flux()
    with pytest.raises(RequestError, match=told):
        hirescli.linearize(transformer, "clear", **settings)
    assert mounted(transformer) is None


def test_settings_that_are_not_published_are_refused() -> None:
    transformer = flux()
    transformer.register_to_config(num_layers=19, num_single_layers=38, num_attention_heads=24)
    with pytest.raises(RequestError, match="window 12 and down factor 1; there are clear-8"):
        find_weights(transformer, None, 12, None)


# What is refused of files


def refused(transformer: Any, path: Path, told: str, **settings: Any) -> None:
    before = {n: p.data_ptr() for n, p in transformer.named_parameters()}
    with pytest.raises(RequestError, match=told) as caught:
        hirescli.linearize(transformer, "clear", weights=path, **settings)
    assert str(path) in str(caught.value)
    assert mounted(transformer) is None
    assert {n: p.data_ptr() for n, p in transformer.named_parameters()} == before


def test_weights_for_another_model_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    refused(flux(num_single_layers=1), path, r"holds single_transformer_blocks\.1\.attn\.to_k")
    refused(flux(num_single_layers=3), path, "single_transformer_blocks.2.attn.to_q.weight is mis")
    refused(
        flux(num_attention_heads=4), path, r"\(32,\), and the model's is \(64,\).*made for this"
    )
    refused(sd3(), path, "no place for")


def test_weights_for_other_settings_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors")
    refused(flux(), path, "was made for window 4, not 8", window=8)
    pooled = tmp_path / "clear_local_8_down_4.safetensors"
    save_file(load_file(path), pooled)
    refused(flux(), pooled, "processor.spatial_weight is missing, and 2 more")
    with_weights = saved(tmp_path / "b.safetensors", down_factor=2)
    plain = tmp_path / "clear_local_8.safetensors"
    save_file(load_file(with_weights), plain)
    refused(flux(), plain, "spatial_weight, which this model has no place for")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path, bad = saved(tmp_path / "a.safetensors"), tmp_path / "bad.safetensors"
    whole = path.read_bytes()
    for content, told in (
        (b"", "empty"),
        (whole[:-10], "truncated"),
        (whole + b"0", "behind its last"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
    ):
        bad.write_bytes(content)
        with pytest.raises(WeightsError, match=told):
            hirescli.linearize(flux(), "clear", weights=bad)
    save_file({k: v.to(torch.int64) for k, v in load_file(path).items()}, bad)
    refused(flux(), bad, "stored as I64")
    assert Variant(8) < Variant(16)
