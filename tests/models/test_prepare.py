"""What a run has ready: checked before weights are loaded, loaded once, pictures read well."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import FOLDERS, controlnet_folder, ip_adapter_folder, lora_file
from PIL import Image

import hirescli
from hirescli.cascade import prepare
from hirescli.cascade.prepare import Models, guides_of
from hirescli.cascade.run import run
from hirescli.errors import RequestError
from hirescli.models.load import Model, load
from hirescli.models.registry import find
from hirescli.planning.machine import Machine
from hirescli.planning.plan import ValidatedPlan
from hirescli.recipe import Recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepare")
    for family in ("sd15", "sdxl"):
        FOLDERS[family](root / family)
        controlnet_folder(root / f"{family}-control", family)
        ip_adapter_folder(root / f"{family}-ip", family)
        lora_file(root / f"{family}.safetensors", family)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    return root


def recipe(root: Path, **choices: Any) -> Recipe:
    said = {"prompt": "the sea", "size": 64, "model": str(root / "sd15"), "attention": "full"}
    return Recipe.from_fragments({**said, "device": "cpu", "dtype": "float32", **choices})


def validated(root: Path, path: Path, **choices: Any) -> ValidatedPlan:
    plan = hirescli.plan(recipe(root, **choices))
    return plan.validate(Machine.detect(with_devices=False), path)


@pytest.mark.parametrize("plug", ["lora", "control", "image"])
def test_another_family_is_refused_before_weights_are_loaded(
    plug: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(prepare, "load", never)
    picture = str(root / "picture.png")
    choices, given = {
        "lora": ({"loras": [str(root / "sdxl.safetensors")]}, "sdxl.safetensors"),
        "control": ({"controls": [f"{root / 'sdxl-control'}={picture}"]}, "sdxl-control"),
        "image": (
            {"image_prompts": [picture], "image_adapter": str(root / "sdxl-ip")}, "sdxl-ip"
        ),
    }[plug]  # fmt: skip
    with pytest.raises(RequestError, match="`sd15`") as caught:
        run([validated(root, tmp_path / "made.tif", **choices)])
    assert given in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_plans_know_what_was_found(root: Path, tmp_path: Path) -> None:
    """A digest in place of nothing; plans with and without it are of the same model."""
    picture = str(root / "picture.png")
    plan = validated(root, tmp_path / "made.tif", controls=[f"{root / 'sd15-control'}={picture}"])
    (control,) = plan.recipe.controls
    models = Models([plan])
    assert models.find() == (plan,)
    bare = control.model_copy(update={"revision": None})
    recipe_ = plan.recipe.model_copy(update={"controls": (bare,)})
    old = dataclasses.replace(plan, plan=dataclasses.replace(plan.plan, recipe=recipe_))
    models = Models([old])
    assert models.find() == (plan,)
    assert models.of(plan.plan) is models.of(old.plan)


@pytest.fixture(scope="module")
def model(root: Path) -> Model:
    return load(find(str(root / "sd15")), dtype="float32", linear=False)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    calls: list[Any] = []
    real: Callable[..., Any] = getattr(prepare, name)

    def call(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(prepare, name, call)
    return calls


def test_what_plugs_in_is_loaded_once_for_all_seeds(
    root: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controlnets, mounts = (counted(monkeypatch, n) for n in ("load_controlnet", "image_embeds"))
    picture, control = str(root / "picture.png"), str(root / "sd15-control")
    both = {
        "controls": [f"{control}={picture}", f"{control}={picture}:0.5"],
        "image_prompts": [picture], "image_adapter": str(root / "sd15-ip"),
    }  # fmt: skip
    given = []
    for seed in range(2):
        given.append(guides_of(recipe(root, seed=seed, **both), model, tmp_path.joinpath))
    assert (len(controlnets), len(mounts)) == (2, 1)
    one, other = ([module for module, _, _ in each.controlnets] for each in given)
    assert one[0] is other[0]
    assert one[1] is other[1]
    assert one[0] is not one[1]  # each runs with a picture of its own
    assert given[0].image_embeds is not None
    assert model.unet.encoder_hid_proj is not None
    guides = guides_of(recipe(root), model, tmp_path.joinpath)
    assert (guides.controlnets, guides.image_embeds) == ((), None)
    assert model.unet.encoder_hid_proj is None  # taken out again
    guides_of(recipe(root, **both), model, tmp_path.joinpath)
    assert (len(controlnets), len(mounts)) == (4, 2)
    guides_of(recipe(root), model, tmp_path.joinpath)


def lying(upright: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def on_white(upright: Image.Image, path: Path) -> None:
    """What is black in it is transparent, and white in the picture it equals."""
    made = np.asarray(upright.convert("RGBA")).copy()
    white = (made[..., :3] == 255).all(axis=2)
    made[white] = 0
    Image.fromarray(made).save(path)


def in_16_bits(upright: Image.Image, path: Path) -> None:
    import tifffile

    tifffile.imwrite(path, np.asarray(upright).astype(np.uint16) * 257, photometric="rgb")


@pytest.mark.parametrize(
    ("write", "suffix"), [(lying, ".png"), (on_white, ".png"), (in_16_bits, ".tif")]
)
def test_image_prompts_are_read_as_other_pictures(
    write: Callable[[Image.Image, Path], None], suffix: str, root: Path, model: Model,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Turned, on white, in 16 bits: what an image encoder sees is the upright picture."""
    pixels = np.asarray(Image.open(root / "picture.png")).copy()
    pixels[:10, :20] = 255
    upright = Image.fromarray(pixels)
    upright.save(tmp_path / "plain.png")
    write(upright, tmp_path / f"other{suffix}")
    seen = []
    for name in ("plain.png", f"other{suffix}"):
        choices = {"image_prompts": [str(tmp_path / name)], "image_adapter": str(root / "sd15-ip")}
        guides = guides_of(recipe(root, **choices), model, tmp_path.joinpath)
        assert guides.image_embeds is not None
        seen.append(guides.image_embeds[0])
    guides_of(recipe(root), model, tmp_path.joinpath)
    assert torch.equal(*seen)
    assert float(seen[0].abs().max()) > 0.01
    assert not list(tmp_path.glob("prompt-*"))  # the disk is free again


def test_an_image_prompt_is_reduced(tmp_path: Path) -> None:
    """Without aliases, in its shape."""
    stripes = np.zeros((64, 4096, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "wide.png")
    made = prepare._shrunk(str(tmp_path / "wide.png"), tmp_path / "a", tmp_path / "b")
    assert made.size == (1024, 16)
    inner = np.asarray(made)[:, 8:-8].astype(int)
    assert np.abs(inner - 127.5).max() < 8  # grey: no stripe is left


def test_a_broken_image_prompt_is_named(root: Path, model: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes((root / "picture.png").read_bytes()[:200])
    choices = {"image_prompts": [str(tmp_path / "broken.png")]}
    made = recipe(root, **choices, image_adapter=str(root / "sd15-ip"))
    with pytest.raises(RequestError, match=r"broken\.png"):
        guides_of(made, model, tmp_path.joinpath)
