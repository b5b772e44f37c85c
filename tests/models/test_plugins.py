"""LoRAs, ControlNets and IP-Adapters: as diffusers has them, or refused for another family."""

from __future__ import annotations

import warnings
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
from hirescli.models.plugins import apply_loras, image_embeds, load_controlnet
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
    made = load_controlnet(model, str(given))
    wanted = ControlNetModel.from_pretrained(folder, local_files_only=True).state_dict()
    assert made.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in made.state_dict().items())
    assert made.dtype == model.unet.dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_prompt_is_as_in_diffusers(family: str, root: Path) -> None:
    picture, scales = root / "picture.png", [0.5, 0.2]
    model, reference = loaded(root, family), plain(root, family)
    embeds = image_embeds(model, str(root / f"{family}-ip"), [(picture, s) for s in scales])
    folder = "sdxl_models" if family == "sdxl" else "models"
    name = "ip-adapter_sdxl.safetensors" if family == "sdxl" else "ip-adapter_sd15.safetensors"
    reference.load_ip_adapter(str(root / f"{family}-ip"), subfolder=folder, weight_name=[name] * 2)
    reference.set_ip_adapter_scale(scales)
    images = [Image.open(picture).convert("RGB")] * 2
    wanted = reference.prepare_ip_adapter_image_embeds(images, None, "cpu", 1, True)
    for one, other in zip(embeds, wanted, strict=True):
        torch.testing.assert_close(one, other)
    states = model.text.encode("the sea", "")
    added = {"added_cond_kwargs": {"image_embeds": [each[1:] for each in embeds]}}
    mine = predicted(model.unet, states, **added)
    torch.testing.assert_close(mine, predicted(reference.unet, states, **added))
    nothing = {"added_cond_kwargs": {"image_embeds": [each[:1] for each in embeds]}}
    assert float((mine - predicted(model.unet, states, **nothing)).abs().max()) > 1e-3


@pytest.mark.parametrize("other", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_plug_ins_of_another_family_are_refused(family: str, other: str, root: Path) -> None:
    if family == other:
        pytest.skip("the same family")
    model = loaded(root, family)
    states = predicted(model.unet, model.text.encode("the sea", ""))
    picture = [(root / "picture.png", 1.0)]
    for plug, given in (
        (lambda: apply_loras(model, [(root / f"{other}.safetensors", 1)]), f"{other}.safetensors"),
        (lambda: load_controlnet(model, str(root / f"{other}-control")), f"{other}-control"),
        (lambda: image_embeds(model, str(root / f"{other}-ip"), picture), f"{other}-ip"),
    ):
        with pytest.raises(RequestError) as caught:
            plug()
        assert given in str(caught.value)
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


def test_unknown_controls_and_pictures(root: Path, tmp_path: Path) -> None:
    model = loaded(root, "sd15")
    card = model.card.model_copy(update={"controls": (("canny", "a/b"), ("depth", "c/d"))})
    with pytest.raises(RequestError, match="knows canny, depth") as caught:
        load_controlnet(replace(model, card=card), "edges")
    assert '"edges"' in str(caught.value)
    (tmp_path / "broken.png").write_bytes((root / "picture.png").read_bytes()[:200])
    with pytest.raises(RequestError, match=r"broken\.png"):
        image_embeds(model, str(root / "sd15-ip"), [(tmp_path / "broken.png", 1.0)])
    with pytest.raises(RequestError, match="no IP-Adapter is known"):
        image_embeds(model, None, [(root / "picture.png", 1.0)])
