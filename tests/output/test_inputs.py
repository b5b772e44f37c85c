"""What a recipe is made from: told from others by digests and commits, found in any folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from hirescli.errors import RequestError
from hirescli.output.inputs import identified
from hirescli.recipe import Recipe

sys.path.append(str(Path(__file__).parent.parent / "models"))
from folders import controlnet_folder, ip_adapter_folder, linfusion_folder, lora_file, sd15_folder

COMMIT, LATER = "c" * 40, "d" * 40
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    linfusion_folder(root / "linear", sd15_folder(root / "model") / "unet")
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model and all that plugs into it."""
    for name in ("model", "linear"):
        (tmp_path / name).symlink_to(made / name)
    controlnet_folder(tmp_path / "control", "sd15")
    ip_adapter_folder(tmp_path / "ip", "sd15")
    lora_file(tmp_path / "lora.safetensors", "sd15")
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "edges.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def recipe(**choices: Any) -> Recipe:
    return Recipe.from_fragments({"prompt": "the sea", "size": 64, **choices})


LOCAL: dict[str, Any] = {
    "model": "model",
    "adapter": "linear",
    "loras": ["lora.safetensors"],
    "controls": ["control=edges.png"],
    "image_prompts": ["edges.png"],
    "image_adapter": "ip",
    "init_image": "edges.png",
}


def cached(here: Path, name: str, commit: str, *files: str) -> None:
    folder = here / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    for file in files or ("config.json",):
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_a_recipe_means_the_same_in_another_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = identified(recipe(**LOCAL))
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    again = Recipe.from_json(one.to_json())
    assert identified(again) == one == again
    for path in (
        one.model, one.adapter, one.loras[0].path, one.controls[0].path, one.controls[0].kind,
        one.image_prompts[0].path, one.image_adapter, one.init_image and one.init_image.path,
    ):  # fmt: skip
        assert path is not None
        assert Path(path).is_absolute()
        assert Path(path).exists()


def test_local_weights_have_a_digest(here: Path) -> None:
    one = identified(recipe(**LOCAL))
    said = (one.adapter_revision, one.controls[0].revision, one.image_adapter_revision)
    assert all(each is not None and each.startswith("local-") for each in said)
    assert len(set(said)) == 3
    assert identified(recipe(**LOCAL)).hash == one.hash


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("linear/diffusion_pytorch_model.safetensors", "linear"),
        ("control/diffusion_pytorch_model.safetensors", "control"),
        ("ip/models/ip-adapter_sd15.safetensors", "ip"),
        ("ip/models/image_encoder/model.safetensors", "ip"),
    ],
)
def test_other_weights_than_the_recipes_are_refused(file: str, name: str, here: Path) -> None:
    if name == "linear":
        (here / "linear").unlink()
        linfusion_folder(here / "linear", here / "model" / "unet")
    one = identified(recipe(**LOCAL))
    states = load_file(file)
    first = sorted(states)[0]
    save_file(states | {first: states[first] + 1}, file)
    with pytest.raises(RequestError, match="is not what the recipe was made with") as caught:
        identified(one)
    assert str(here / name) in str(caught.value)
    other = {key: LOCAL[key] for key in ("adapter", "controls", "image_adapter")}
    assert identified(recipe(**LOCAL)).hash != one.hash  # what stands there now
    merged = Recipe.from_fragments(one.model_dump(), other)
    if name != "control":  # named by another path, it is another
        assert identified(merged).hash != one.hash


@pytest.mark.parametrize("name", ["linear", "control", "ip", "model"])
def test_a_missing_folder_is_said_before_planning(name: str, here: Path) -> None:
    one = identified(recipe(**LOCAL))
    (here / name).rename(here / "gone")
    with pytest.raises(RequestError) as caught:
        identified(one)
    assert str(here / name) in str(caught.value)


def test_of_the_hub_the_commit_is_recorded(here: Path) -> None:
    """Of what is in the cache; and it stays when the branch moves on."""
    given = {
        "model": "sd15", "controls": ["canny=edges.png"], "image_prompts": ["edges.png"],
    }  # fmt: skip
    cold = identified(recipe(**given))
    assert (cold.revision, cold.adapter_revision, cold.image_adapter_revision) == (None,) * 3
    assert cold.controls[0].revision is None

    from hirescli.models.registry import find_card

    card = find_card("sd15")
    assert card.adapter_id is not None
    assert card.image_adapter_id is not None
    names = [
        SD15, card.adapter_id, dict(card.controls)["canny"],
        "/".join(card.image_adapter_id.split("/")[:2]),
    ]  # fmt: skip
    for name in names:
        cached(here, name, COMMIT)
    one = identified(recipe(**given))
    assert (one.revision, one.adapter_revision) == (COMMIT, COMMIT)
    assert (one.image_adapter_revision, one.controls[0].revision) == (COMMIT, COMMIT)
    assert one.controls[0].kind == "canny"
    for name in names:
        cached(here, name, LATER)
    assert identified(Recipe.from_json(one.to_json())) == one
    assert identified(recipe(**given)).revision == LATER
    assert identified(recipe(**given, attention="full")).adapter_revision is None


def test_another_model_drops_what_the_recipe_says_of_weights() -> None:
    one = recipe(
        model="sd15", revision=COMMIT, adapter="a/b", adapter_revision=COMMIT,
        image_adapter_revision=COMMIT,
        controls=[{"kind": "canny", "path": "x.png", "revision": COMMIT}],
    )  # fmt: skip
    kept = Recipe.from_fragments(one.model_dump(), {"model": "sd15", "adapter": "a/b"})
    assert kept == one
    other = Recipe.from_fragments(one.model_dump(), {"model": "sdxl"})
    assert (other.revision, other.adapter_revision, other.image_adapter_revision) == (None,) * 3
    assert other.controls[0].revision is None
    linear = Recipe.from_fragments(one.model_dump(), {"adapter": "c/d"})
    assert (linear.revision, linear.adapter_revision) == (COMMIT, None)
    assert Recipe.from_fragments({"revision": COMMIT}, {**one.model_dump()}).revision == COMMIT
