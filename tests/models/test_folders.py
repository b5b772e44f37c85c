"""Folders in diffusers' layout: found by their own configs, loaded whole, or refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from folders import FOLDERS, linfusion_folder, sd15_folder
from safetensors.torch import load_file, save_file

from hirescli.attention.linfusion import LinearAttention, mount
from hirescli.errors import RequestError, RunError
from hirescli.models.load import load
from hirescli.models.registry import find
from hirescli.models.sums import write_sums

FAMILIES = ("sd15", "sd21", "sdxl")
NAMES = {"sd15": "sd", "sd21": "sd", "sdxl": "sdxl"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make(root / family) for family, make in FOLDERS.items()}


@pytest.fixture
def folder(whole: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the small Stable Diffusion 1.5 that may be damaged."""
    return Path(shutil.copytree(whole["sd15"], tmp_path / "model"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_has_the_facts_of_its_own_configs(family: str, whole: dict[str, Path]) -> None:
    source = find(str(whole[family]))
    unet = json.loads((whole[family] / "unet" / "config.json").read_text())
    card = source.card
    assert (source.kind, card.family, card.name) == ("folder", NAMES[family], family)
    assert card.native_px == 8 * unet["sample_size"]
    assert card.text_channels == unet["cross_attention_dim"]
    assert card.min_px <= card.native_px // 2
    assert card.adapter is None  # nobody has made one of this shape
    for part, count in card.parameters:
        states = load_file(next((whole[family] / part).glob("*.safetensors")))
        assert count == sum(tensor.numel() for tensor in states.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_loads_what_diffusers_loads(family: str, whole: dict[str, Path]) -> None:
    model = load(find(str(whole[family])), dtype="float32", linear=False)
    plain: Any = DiffusionPipeline.from_pretrained(whole[family], local_files_only=True)
    for mine, theirs in ((model.unet, plain.unet), (model.autoencoder, plain.vae)):
        states = theirs.state_dict()
        assert all(torch.equal(tensor, states[n]) for n, tensor in mine.state_dict().items())
        assert not mine.training
    prompts = {"prompt": "a photo of the cat", "negative_prompt": "a sea"}
    wanted = plain.encode_prompt(
        **prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    given = model.text.encode(*prompts.values())
    assert len(given) == (4 if family == "sdxl" else 2)
    for one, other in zip(given.values(), wanted, strict=True):
        assert torch.equal(one, other)


def test_an_empty_negative_prompt_is_none(whole: dict[str, Path]) -> None:
    """SDXL reads zeros then, which no text gives."""
    text = load(find(str(whole["sdxl"])), dtype="float32", linear=False).text
    assert not text.encode("the sea", "")["negative_prompt_embeds"].any()
    assert text.encode("the sea", "a")["negative_prompt_embeds"].any()


def test_dtypes_of_the_parts(whole: dict[str, Path]) -> None:
    source = find(str(whole["sdxl"]))
    model = load(source, dtype="bfloat16", vae_dtype="float32", linear=False)
    assert (model.unet.dtype, model.autoencoder.dtype) == (torch.bfloat16, torch.float32)
    states = model.text.encode("the sea", "")
    assert {state.dtype for state in states.values()} == {torch.bfloat16}


def test_freed_text_encoders_leave_what_they_encoded(whole: dict[str, Path]) -> None:
    text = load(find(str(whole["sdxl"])), dtype="float32", linear=False).text
    before = text.encode("the sea", "")
    text.free()
    assert text.components["text_encoder"] is text.components["text_encoder_2"] is None  # type: ignore[attr-defined]
    assert all(
        torch.equal(before[key], state) for key, state in text.encode("the sea", "").items()
    )
    assert text.token_count("the sea") == 2
    with pytest.raises(RunError, match="freed"):
        text.encode("the cat", "")


def test_other_schedulers_keep_the_noise_schedule(whole: dict[str, Path]) -> None:
    model = load(find(str(whole["sd21"])), dtype="float32", linear=False)
    for name in model.card.schedulers:
        made = model.scheduler_named(name)
        assert made.config.prediction_type == "v_prediction"
        assert made.config.beta_schedule == "scaled_linear"
        assert not made.config.get("clip_sample")


def test_an_adapter_beside_the_model(whole: dict[str, Path], tmp_path: Path) -> None:
    adapter = linfusion_folder(tmp_path / "adapter", whole["sd15"] / "unet")
    source = find(str(whole["sd15"]), adapter=str(adapter))
    assert source.card.adapter == "linfusion"
    model = load(source, dtype="float32")
    assert model.linfusion is not None
    assert not any(isinstance(m, LinearAttention) for m in model.unet.modules())
    states = load_file(adapter / WEIGHTS)
    assert all(torch.equal(t, states[n]) for n, t in model.linfusion.state_dict().items())
    mount(model.unet, model.linfusion)
    with pytest.raises(RequestError, match="does not fit this model"):
        load(find(str(whole["sdxl"]), adapter=str(adapter)), dtype="float32")


def test_linear_attention_without_an_adapter_is_refused(whole: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match="--adapter"):
        load(find(str(whole["sd15"])), dtype="float32", linear=True)


def test_weights_in_half_precision_only(folder: Path) -> None:
    """As many repositories have them: no file without `.fp16`."""
    half = {n: t.half() for n, t in load_file(folder / "unet" / WEIGHTS).items()}
    (folder / "unet" / WEIGHTS).unlink()
    save_file(half, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    model = load(find(str(folder)), dtype="float32", linear=False)
    assert all(torch.equal(t, half[n].float()) for n, t in model.unet.state_dict().items())


def test_old_names_of_attention(folder: Path) -> None:
    """Autoencoders of the first models have query, key, value and proj_attn."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    states, renamed = load_file(folder / "vae" / WEIGHTS), {}
    for name, tensor in states.items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        renamed[name] = tensor
    assert renamed.keys() != states.keys()
    save_file(renamed, folder / "vae" / WEIGHTS)
    model = load(find(str(folder)), dtype="float32", linear=False)
    assert all(torch.equal(t, states[n]) for n, t in model.autoencoder.state_dict().items())


def test_positions_in_a_text_encoder_are_no_fault(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    states = load_file(path)
    prefix = "text_model." if any(n.startswith("text_model.") for n in states) else ""
    states[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    save_file(states, path, metadata={"format": "pt"})
    load(find(str(folder)), dtype="float32", linear=False)


def test_another_revision_is_refused(folder: Path) -> None:
    source = find(str(folder))
    assert find(str(folder), source.card.revision).card.revision == source.card.revision
    states = load_file(folder / "unet" / WEIGHTS)
    states["conv_in.bias"] += 1
    save_file(states, folder / "unet" / WEIGHTS)
    with pytest.raises(RequestError, match=source.card.revision):
        find(str(folder), source.card.revision)


def test_a_flipped_bit_is_found_by_its_sum(folder: Path) -> None:
    write_sums(folder)
    load(find(str(folder)), dtype="float32", linear=False)
    path = folder / "vae" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RequestError, match=f"vae/{WEIGHTS} is damaged"):
        load(find(str(folder)), dtype="float32", linear=False)


# Files that are not the weights they are said to be


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def huge_header(data: bytes) -> bytes:
    return struct.pack("<Q", 10**12) + data[8:]


def header_changed(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def overlapping(data: bytes) -> bytes:
    def change(header: dict[str, Any]) -> None:
        first, second = sorted(n for n in header if n != "__metadata__")[:2]
        header[second]["data_offsets"] = header[first]["data_offsets"]

    return header_changed(data, change)


def wrong_type(data: bytes) -> bytes:
    def change(header: dict[str, Any]) -> None:
        next(v for n, v in header.items() if n != "__metadata__")["dtype"] = "F64"

    return header_changed(data, change)


def pickled(_: bytes) -> bytes:
    import io

    file = io.BytesIO()
    torch.save({"conv_in.weight": torch.zeros(2)}, file)
    return file.getvalue()


def old_pickle(_: bytes) -> bytes:
    import pickle

    return pickle.dumps({"conv_in.weight": 1}, protocol=2)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3438167540\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Access to this model is restricted</body></html>" * 9
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "is empty"),
    "nine bytes": (lambda data: data[:9], "is truncated"),
    "truncated": (truncated, "is truncated: tensor"),
    "trailing": (lambda data: data + b"\0" * 5, "has 5 bytes behind its last tensor"),
    "huge header": (huge_header, "header would be 1000000000000 bytes"),
    "header beyond the end": (lambda d: struct.pack("<Q", 10**7) + d[8:], "is truncated"),
    "header of noise": (lambda d: d[:8] + b"\xff" * (len(d) - 8), "header .* is damaged"),
    "deep header": (lambda d: struct.pack("<Q", 10**5) + b"[" * 10**5, "header .* is damaged"),
    "pointer": (lambda _: POINTER, "git-lfs"),
    "page": (lambda _: PAGE, "web page"),
    "pickle": (pickled, "is a pickle"),
    "old pickle": (old_pickle, "is a pickle"),
    "overlap": (overlapping, "header .* is damaged: tensor"),
    "wrong type": (wrong_type, "header .* is damaged: tensor"),
}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named_before_anything_is_loaded(
    folder: Path, part: str, damage: str
) -> None:
    change, said = DAMAGE[damage]
    (path,) = (folder / part).glob("*.safetensors")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RequestError, match=said) as caught:
        find(str(folder))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("how", ["missing", "unexpected", "shape"])
def test_tensors_that_do_not_agree_are_named(folder: Path, part: str, how: str) -> None:
    (path,) = (folder / part).glob("*.safetensors")
    states = load_file(path)
    name = sorted(n for n in states if n.endswith("bias"))[0]
    if how == "missing":
        del states[name]
    elif how == "unexpected":
        name = "something.of.another.weight"
        states[name] = torch.zeros(3)
    else:
        states[name] = states[name][:-1].clone()
    save_file(states, path, metadata={"format": "pt"})
    with pytest.raises(RequestError) as caught:
        load(find(str(folder)), dtype="float32", linear=False)
    assert name.removeprefix("text_model.") in str(caught.value)
    assert str(folder / part) in str(caught.value)


def test_a_pickle_in_place_of_weights_is_refused(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(RequestError, match=r"diffusion_pytorch_model\.bin .* pickle"):
        find(str(folder))


def remove(relative: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        target = folder / relative
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return change


def set_json(relative: str, **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / relative
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


FAULTS: list[tuple[Callable[[Path], Any], str]] = [
    (remove("model_index.json"), "no model_index.json"),
    (remove("unet"), "unet/config.json is missing"),
    (remove("vae/config.json"), "vae/config.json is missing"),
    (remove(f"vae/{WEIGHTS}"), f"vae/{WEIGHTS} is missing"),
    (remove("tokenizer/vocab.json"), "vocab.json"),
    (lambda f: (f / "unet/config.json").write_text("{"), "unet/config.json cannot be read"),
    (lambda f: (f / "unet/config.json").write_text("[]"), "unet/config.json cannot be read"),
    (set_json("model_index.json", _class_name="PixArtAlphaPipeline"), "PixArtAlphaPipeline"),
    (set_json("model_index.json", _class_name="StableDiffusionXLPipeline"), "another family"),
    (set_json("unet/config.json", in_channels=9), "9 channels"),
    (set_json("unet/config.json", sample_size="big"), "sample_size big"),
]


@pytest.mark.parametrize(("damage", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_incomplete_folders_are_named(
    folder: Path, damage: Callable[[Path], Any], said: str
) -> None:
    damage(folder)
    with pytest.raises(RequestError, match=said) as caught:
        load(find(str(folder)), dtype="float32", linear=False)
    assert str(folder) in str(caught.value) or "sample_size" in str(caught.value)


def test_code_of_a_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    """Neither a pipeline's nor a module's own Python file, whatever the index says."""
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    for name in ("pipeline.py", "unet/my_unet.py", "text_encoder/modeling.py"):
        (folder / name).write_text(code)
    set_json("model_index.json", unet=["my_unet", "MyUNet"])(folder)
    auto = {"AutoModel": "modeling.My", "AutoConfig": "modeling.My"}
    set_json("text_encoder/config.json", auto_map=auto)(folder)
    load(find(str(folder)), dtype="float32", linear=False)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nonsense", "`builtin`, `flux-dev`, .*`sd15`, .*`sdxl`, a hub id"),
        ("sd 15", "is not known"),
        ("./nowhere", "does not exist"),
        ("nowhere.safetensors", "does not exist"),
        ("a/b/c", "is not known"),
        ("../../etc", "does not exist|no model in diffusers"),
    ],
)
def test_unknown_names(model: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=said):
        find(model)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickles_are_refused_by_name(name: str, tmp_path: Path) -> None:
    torch.save({}, tmp_path / name)
    with pytest.raises(RequestError, match="is a pickle"):
        find(str(tmp_path / name))


def test_folders_are_the_same_at_every_call(whole: dict[str, Path], tmp_path: Path) -> None:
    again = find(str(sd15_folder(tmp_path / "sd15")))
    assert again.card.revision == find(str(whole["sd15"])).card.revision


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("unet", {"block_out_channels": "huh"}, "block_out_channels"),
        ("unet", {"block_out_channels": [16, 0]}, "block_out_channels"),
        ("unet", {"sample_size": True}, "sample_size"),
        ("unet", {"cross_attention_dim": "wide"}, "cross_attention_dim"),
        ("unet", {"cross_attention_dim": None}, "cross_attention_dim"),
        ("unet", {"down_block_types": ["DownBlock7D"] * 4}, "DownBlock7D"),
        ("vae", {"scaling_factor": "x"}, "scaling_factor"),
        ("vae", {"scaling_factor": 0}, "scaling_factor"),
        ("vae", {"latent_channels": 4.5}, "latent_channels"),
        ("vae", None, "block_out_channels"),
        ("text_encoder", {"max_position_embeddings": "77"}, "max_position_embeddings"),
    ],
)
def test_a_damaged_config_is_named_with_its_key(
    part: str, change: dict[str, Any] | None, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = sd15_folder(tmp_path / "model") / part / "config.json"
    config = {} if change is None else json.loads(path.read_text()) | change
    path.write_text(json.dumps(config))
    with pytest.raises(RequestError, match=said) as caught:
        find(str(tmp_path / "model")).card.trace("denoiser", "float32", "full")
    where = path if said != "DownBlock7D" else tmp_path / "model"
    assert str(where) in str(caught.value)
