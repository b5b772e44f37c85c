from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from hirescli.output.exif import exif_data, read_user_comment
from hirescli.output.metadata import inspect
from hirescli.output.parameters import parameters_text, read_parameters
from hirescli.recipe import Recipe

# As A1111's web interface 1.6 writes it.
FOREIGN = (
    "a cat, (best quality:1.2), <lora:fur:0.8>\nsecond line\n"
    "Negative prompt: blurry, ugly\n"
    "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 4294967296, Size: 512x768, "
    'Model hash: 6ce0161689, Model: v1-5-pruned, Lora hashes: "fur: 1, b: 2", Version: v1.6.0'
)
READ = {
    "prompt": "a cat, (best quality:1.2), <lora:fur:0.8>\nsecond line",
    "negative_prompt": "blurry, ugly",
    "steps": 20,
    "sampler": "DPM++ 2M Karras",
    "cfg_scale": 7.5,
    "seed": 4294967296,
    "size": "512x768",
    "model": "v1-5-pruned",
    "others": {"Model hash": "6ce0161689", "Lora hashes": "fur: 1, b: 2", "Version": "v1.6.0"},
}


def test_the_text_of_another_program() -> None:
    assert read_parameters(FOREIGN) == READ
    assert read_parameters(FOREIGN.replace("Steps: 20", "Steps: many")) == {
        key: value for key, value in READ.items() if key not in ("steps", "others")
    } | {"others": {"Steps": "many"} | READ["others"]}


@pytest.mark.parametrize("text", ["", "a cat", "Negative prompt: x", "Steps", "{}", "\0" * 99])
def test_other_texts_are_none(text: str) -> None:
    assert read_parameters(text) is None


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Zl", "Zp"]), min_size=1),
    st.text(string.ascii_letters + " ,.", max_size=40),
)
def test_what_is_written_is_read(prompt: str, negative: str) -> None:
    if not prompt.strip() or "Negative prompt:" in prompt:
        return
    choices = {"prompt": prompt, "negative_prompt": negative, "size": 64, "steps": 5, "seed": 3}
    recipe = Recipe.from_fragments(choices)
    found = read_parameters(parameters_text(recipe))
    assert found is not None
    assert found["prompt"] == recipe.prompt.strip()
    assert found["negative_prompt"] == recipe.negative_prompt
    assert (found["steps"], found["seed"], found["size"]) == (5, 3, "64x64")
    assert read_user_comment(exif_data(parameters_text(recipe), dpi=300)) == parameters_text(
        recipe
    )


def foreign(path: Path, text: str) -> Path:
    image = Image.fromarray(np.full((40, 60, 3), 90, dtype=np.uint8))
    if path.suffix == ".png":
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text)
        image.save(path, pnginfo=info)
        return path
    exif = Image.Exif()
    order = "utf-16-le" if path.stem == "little" else "utf-16-be"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode(order)
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "little.jpg"])
def test_pictures_of_another_program(tmp_path: Path, name: str) -> None:
    facts = inspect(foreign(tmp_path / name, FOREIGN))
    assert facts.recipe is None
    assert facts.parameters == READ


def test_a_compressed_text_of_a_png_is_read_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", FOREIGN, zip=True)
    info.add_itxt("bomb", "x" * 2**25, zip=True)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    assert inspect(path).parameters == READ


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"\0" * 99])
def test_damaged_exif_says_nothing(exif: bytes) -> None:
    assert read_user_comment(exif) == ""
