"""LoRAs, ControlNets and IP-Adapters: as diffusers has them, or refused for another family."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline
from folders import FOLDERS, controlnet_folder, ip_adapter_folder, linfusion_folder, lora_file
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.errors import RequestError
from hirescli.models.load import Model, load
from hirescli.models.loras import apply_loras, check_loras
from hirescli.models.plugin_sources import find_controlnet, find_image_adapter
from hirescli.models.plugins import image_embeds, load_controlnet
from hirescli.models.registry import find

FAMILIES = ("sd15", "sd21", "sdxl")
SCALE = 0.7


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and plug-ins of all families, and a picture."""
    root = tmp_path_factory.mktemp("plugins")
    for family, make in FOLDERS.items():
        linfusion_folder(root / f"{family}-linfusion", make(root / family) / "unet")
        controlnet_folder(root / f"{family}-control", family)
        ip_adapter_folder(root / f"{family}-ip", family)
        lora_file(root / f"{family}.safetensors", family)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    return root


def loaded(root: Path, family: str, dtype: str = "float32") -> Model:
    source = find(str(root / family), adapter=str(root / f"{family}-linfusion"))
    return load(source, dtype=dtype)


def plain(root: Path, family: str) -> Any:
    return DiffusionPipeline.from_pretrained(root / family, local_files_only=True)


@torch.no_grad()
def predicted(unet: Any, states: dict[str, Tensor], **options: Any) -> Tensor:
    """The noise that a denoiser sees in one fixed sample."""
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    if "pooled_prompt_embeds" in states:
        added = {"text_embeds": states["pooled_prompt_embeds"], "time_ids": torch.ones(1, 6)}
        options["added_cond_kwargs"] = added | options.get("added_cond_kwargs", {})
    said = states["prompt_embeds"]
    return unet(sample.to(said), 7, said, **options).sample  # type: ignore[no-any-return]


@pytest.mark.parametrize("linear", [False, True], ids=["full", "linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_is_as_in_diffusers(family: str, linear: bool, root: Path) -> None:
    """On attention, feed-forward and text encoder; with an adapter mounted as without."""
    model, reference = loaded(root, family), plain(root, family)
    without = predicted(model.unet, model.text.encode("the sea", ""))
    model = loaded(root, family)
    apply_loras(model, [(root / f"{family}.safetensors", SCALE)])
    if linear:
        folder = root / f"{family}-linfusion"
        mount(reference.unet, LinFusionAdapter.from_pretrained(folder, local_files_only=True))
        assert model.linfusion is not None
        mount(model.unet, model.linfusion)
    reference.load_lora_weights(str(root), weight_name=f"{family}.safetensors")
    reference.set_adapters(reference.get_active_adapters(), [SCALE])
    words = {"prompt": "the sea", "device": "cpu", "num_images_per_prompt": 1}
    wanted = reference.encode_prompt(**words, do_classifier_free_guidance=True)
    states = model.text.encode("the sea", "")
    torch.testing.assert_close(states["prompt_embeds"], wanted[0], rtol=1e-5, atol=1e-5)
    mine, theirs = predicted(model.unet, states), predicted(reference.unet, states)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert float((mine - without).abs().max()) > 0.1
    assert not any("lora" in name for name, _ in model.unet.named_modules())


def test_two_loras_add_up(root: Path, tmp_path: Path) -> None:
    other = lora_file(tmp_path / "other.safetensors", "sd15", seed=77, text=False)
    model, reference = loaded(root, "sd15"), plain(root, "sd15")
    apply_loras(model, [(root / "sd15.safetensors", 0.5), (other, -0.3)])
    reference.load_lora_weights(str(root), weight_name="sd15.safetensors", adapter_name="a")
    with warnings.catch_warnings():  # of a second one beside the first
        warnings.simplefilter("ignore")
        reference.load_lora_weights(str(tmp_path), weight_name=other.name, adapter_name="b")
    reference.set_adapters(["a", "b"], [0.5, -0.3])
    states = model.text.encode("the sea", "")
    mine, theirs = predicted(model.unet, states), predicted(reference.unet, states)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_lora_under_the_names_of_its_trainer(root: Path, tmp_path: Path) -> None:
    """As kohya's scripts write it, with alpha: half the rank halves it."""
    states = {}
    for name, tensor in load_file(root / "sd15.safetensors").items():
        if name.startswith("unet."):
            module, which, _ = name.removeprefix("unet.").rsplit(".", 2)
            module = f"lora_unet_{module.replace('.', '_')}"
            side = "down" if which == "lora_A" else "up"
            states[f"{module}.lora_{side}.weight"] = tensor
            states[f"{module}.alpha"] = torch.tensor(1.0)
    path = tmp_path / "kohya.safetensors"
    save_file(states, path)
    one, other = loaded(root, "sd15"), loaded(root, "sd15")
    apply_loras(one, [(path, 1.0)])
    plain_lora = lora_file(tmp_path / "plain.safetensors", "sd15", text=False)
    apply_loras(other, [(plain_lora, 0.5)])
    said = one.text.encode("the sea", "")
    torch.testing.assert_close(
        predicted(one.unet, said), predicted(other.unet, said), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("single", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_controlnet_is_as_in_diffusers(family: str, single: bool, root: Path) -> None:
    model, folder = loaded(root, family), root / f"{family}-control"
    given = folder / "diffusion_pytorch_model.safetensors" if single else folder
    made = load_controlnet(model, find_controlnet(str(given), model=model.source))
    wanted = ControlNetModel.from_pretrained(folder, local_files_only=True).state_dict()
    assert made.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.state_dict().items())
    assert made.dtype == model.unet.dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_prompt_is_as_in_diffusers(family: str, root: Path) -> None:
    picture, scales = Image.open(root / "picture.png").convert("RGB"), [0.5, 0.2]
    model, reference = loaded(root, family), plain(root, family)
    source = find_image_adapter(str(root / f"{family}-ip"), model=model.source)
    embeds = image_embeds(model, source, [(picture, scale) for scale in scales])
    folder = "sdxl_models" if family == "sdxl" else "models"
    name = "ip-adapter_sdxl.safetensors" if family == "sdxl" else "ip-adapter_sd15.safetensors"
    reference.load_ip_adapter(str(root / f"{family}-ip"), subfolder=folder, weight_name=[name] * 2)
    reference.set_ip_adapter_scale(scales)
    images = [picture] * 2
    wanted = reference.prepare_ip_adapter_image_embeds(images, None, "cpu", 1, True)
    alone = reference.prepare_ip_adapter_image_embeds(images, None, "cpu", 1, False)
    for one, other, positive in zip(embeds, wanted, alone, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one.chunk(2)[1], positive)  # the negative half is first
        assert float(one.chunk(2)[0].abs().max()) == 0
    states = model.text.encode("the sea", "")
    added = {"added_cond_kwargs": {"image_embeds": [each[1:] for each in embeds]}}
    mine = predicted(model.unet, states, **added)
    torch.testing.assert_close(mine, predicted(reference.unet, states, **added))
    nothing = {"added_cond_kwargs": {"image_embeds": [each[:1] for each in embeds]}}
    assert float((mine - predicted(model.unet, states, **nothing)).abs().max()) > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_image_prompt_beside_a_denoiser_on_a_gpu(root: Path) -> None:
    picture = Image.open(root / "picture.png").convert("RGB")
    made = []
    for device in ("cpu", "cuda"):
        model = loaded(root, "sd15")
        model.unet.to(device)
        source = find_image_adapter(str(root / "sd15-ip"), model=model.source)
        made += image_embeds(model, source, [(picture, 1.0)])
    torch.testing.assert_close(made[0], made[1].cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("other", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_plug_ins_of_another_family_are_refused(family: str, other: str, root: Path) -> None:
    if family == other:
        pytest.skip("the same family")
    model = loaded(root, family)
    states = predicted(model.unet, model.text.encode("the sea", ""))
    picture = [(Image.open(root / "picture.png").convert("RGB"), 1.0)]
    lora, control, ip = (root / f"{other}{end}" for end in (".safetensors", "-control", "-ip"))
    source, own = model.source, find(str(root / other))
    plugs: tuple[tuple[Callable[[], Any], Path], ...] = (
        (lambda: check_loras(source, [lora]), lora),
        (lambda: apply_loras(model, [(lora, 1)]), lora),
        (lambda: find_controlnet(str(control), model=source), control),
        (lambda: load_controlnet(model, find_controlnet(str(control), model=own)), control),
        (lambda: find_image_adapter(str(ip), model=source), ip),
        (lambda: image_embeds(model, find_image_adapter(str(ip), model=own), picture), ip),
    )
    for plug, given in plugs:
        with pytest.raises(RequestError) as caught:
            plug()
        assert str(given) in str(caught.value)
        assert f"`{family}`" in str(caught.value)
    after = predicted(model.unet, model.text.encode("the sea", ""))
    assert torch.equal(states, after)  # nothing was changed before it was refused


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"a.weight": (2, 2)}, "is no LoRA"),
        (
            {"transformer.x.lora_A.weight": (2, 8), "transformer.x.lora_B.weight": (8, 2)},
            "FLUX or SD3",
        ),
        (
            {"unet.nowhere.lora_A.weight": (2, 8), "unet.nowhere.lora_B.weight": (8, 2)},
            "no layer unet.nowhere",
        ),
        (
            {"lora_te2_x.lora_down.weight": (2, 8), "lora_te2_x.lora_up.weight": (8, 2)},
            "for SDXL",
        ),
        (
            {"unet.conv_in.lora_A.weight": (2, 9, 3, 3), "unet.conv_in.lora_B.weight": (16, 2)},
            "the layer of",
        ),
    ],
)
def test_files_that_are_no_lora_for_it(
    names: dict[str, tuple[int, ...]], said: str, root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "it.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, path)
    with pytest.raises(RequestError, match=said) as caught:
        apply_loras(loaded(root, "sd15"), [(path, 1.0)])
    assert str(path) in str(caught.value)


def test_a_pickled_lora_is_refused(root: Path, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "style.pt")
    with pytest.raises(RequestError, match="is a pickle"):
        apply_loras(loaded(root, "sd15"), [(tmp_path / "style.pt", 1.0)])


def test_unknown_controls_and_adapters(root: Path) -> None:
    source = find(str(root / "sd15"))
    card = source.card.model_copy(update={"controls": (("canny", "a/b"), ("depth", "c/d"))})
    with pytest.raises(RequestError, match="knows canny, depth") as caught:
        find_controlnet("edges", model=replace(source, card=card))
    assert '"edges"' in str(caught.value)
    with pytest.raises(RequestError, match="no IP-Adapter is known"):
        find_image_adapter(None, model=source)
    for name in ("foo", "foo/bar", "foo/bar/baz", "/nowhere/x.bin"):
        with pytest.raises(RequestError, match=f"IP-Adapter {name} does not exist"):
            find_image_adapter(name, model=source)


def test_a_controlnet_that_averages_over_the_picture(root: Path, tmp_path: Path) -> None:
    """As the published Shuffle of 1.5: its residuals have no rows."""
    folder = tmp_path / "shuffle"
    shutil.copytree(root / "sd15-control", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"global_pool_conditions": True}))
    with pytest.raises(RequestError, match="global_pool_conditions") as caught:
        find_controlnet(str(folder), model=find(str(root / "sd15")))
    assert str(folder) in str(caught.value)


# LoRAs of which a part would change nothing


def renamed(root: Path, path: Path, name: Callable[[str], str]) -> Path:
    states = load_file(root / "sd15.safetensors")
    save_file({name(key): tensor for key, tensor in states.items()}, path)
    return path


LAYOUTS: dict[str, tuple[Callable[[str], str], str]] = {
    "peft": (lambda key: f"base_model.model.{key.removeprefix('unet.')}", "base_model.model."),
    "no prefix": (lambda key: key.removeprefix("unet."), "down_blocks.0."),
    "one lost": (
        lambda key: key.replace("unet.mid_block", "unet.mid_blocks"), "unet.mid_blocks.attentions"
    ),
    "in a text encoder": (lambda key: key.replace("layers.1.", "layers.7."), "layers.7"),
    "mixed": (
        lambda key: key.replace("unet.down_blocks.0", "lora_unet_down_blocks_0"),
        "lora_unet_down_blocks_0",
    ),
    "alphas": (lambda key: key.replace("layers.1.self_attn.q_proj.lora_A", "x.dora_scale"), "x."),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_of_which_a_part_is_not_read(layout: str, root: Path, tmp_path: Path) -> None:
    name, said = LAYOUTS[layout]
    path = renamed(root, tmp_path / "lora.safetensors", name)
    model = loaded(root, "sd15")
    before = {key: tensor.clone() for key, tensor in model.unet.state_dict().items()}
    with pytest.raises(RequestError) as caught:
        apply_loras(model, [(path, 1.0)])
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    after = model.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in after.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_all_of_a_lora_is_found_again(
    dtype: str, stored: torch.dtype, root: Path, tmp_path: Path
) -> None:
    """In every pair of types; on two text encoders; with equal factors in many layers."""
    states = load_file(root / "sdxl.safetensors")
    states |= {key: torch.ones_like(tensor) for key, tensor in list(states.items())[::3]}
    path = tmp_path / "lora.safetensors"
    save_file({key: tensor.to(stored) for key, tensor in states.items()}, path)
    model = loaded(root, "sdxl", dtype)
    apply_loras(model, [(path, 1.0)])
    assert not any("lora" in name for name, _ in model.unet.named_modules())


def test_a_lora_under_the_names_of_older_releases(root: Path, tmp_path: Path) -> None:
    """As diffusers wrote it: in attention processors, with linear layers in text encoders."""

    def older(key: str) -> str:
        side = "down" if "lora_A" in key else "up"
        module = key.rsplit(".", 2)[0]
        if module.startswith("text_encoder."):
            return f"{module}.lora_linear_layer.{side}.weight"
        if ".ff." in module:
            return f"{module}.lora.{side}.weight"
        module, which = module.removesuffix(".0").rsplit(".", 1)
        return f"{module}.processor.{which}_lora.{side}.weight"

    path = renamed(root, tmp_path / "old.safetensors", older)
    one, other = loaded(root, "sd15"), loaded(root, "sd15")
    apply_loras(one, [(path, 1.0)])
    apply_loras(other, [(root / "sd15.safetensors", 1.0)])
    said = [each.text.encode("the sea", "") for each in (one, other)]
    torch.testing.assert_close(said[0]["prompt_embeds"], said[1]["prompt_embeds"])
    torch.testing.assert_close(
        predicted(one.unet, said[0]), predicted(other.unet, said[1]), rtol=1e-4, atol=1e-5
    )
