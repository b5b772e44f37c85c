from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import pyvips
import tifffile
from pictures import picture, recipe, write_spool
from PIL import Image, PngImagePlugin

from hirescli.errors import RequestError
from hirescli.output.finalise import finalise
from hirescli.output.metadata import inspect, read_recipe
from hirescli.output.parameters import parameters_text
from hirescli.output.texts import COMPOSITE_SOURCE_TYPE, DIGITAL_SOURCE_TYPE, describe
from hirescli.recipe import Recipe

WIDTH_PX, HEIGHT_PX = 200, 136
KINDS = {"tiff": "out.tif", "png": "out.png", "jpeg": "out.jpg"}
PROMPTS = {
    "plain": "a red dune at dusk",
    "scripts": "ein Dünenmeer ☃ 砂漠 🏜️ כחול مرحبا",
    "markup": "</rdf:li> & \"quoted\" <b> ]]> \\ {'a': 1}",
    "tab": "one\ttwo",
    "long": "sand and stone, " * 9000,  # 144 kB: more than two JPEG segments
}


def made(folder: Path, **choices: Any) -> tuple[Path, Recipe]:
    spool = write_spool(folder / "spool.tif", picture(WIDTH_PX, HEIGHT_PX))
    wanted = recipe(WIDTH_PX, HEIGHT_PX, **choices)
    return finalise(spool, folder / KINDS[wanted.format], recipe=wanted).path, wanted


def test_a_png_holds_the_recipe_itself(tmp_path: Path) -> None:
    path, wanted = made(tmp_path, format="png")
    with Image.open(path) as image:
        text = image.text["hires_recipe"]
        assert Recipe.from_json(text) == wanted
        for older in (text, describe(wanted).recipe):  # with the key inside, too
            info = PngImagePlugin.PngInfo()
            info.add_text("hires_recipe", older)
            image.save(tmp_path / "other.png", pnginfo=info)
            assert Recipe.from_fragments(read_recipe(tmp_path / "other.png")) == wanted


@pytest.mark.parametrize("key", ["source", "init_image"])
def test_what_is_drawn_over_a_picture_is_a_composite(tmp_path: Path, key: str) -> None:
    Image.fromarray(picture(60, 40)).save(tmp_path / "in.png")
    said = {"path": str(tmp_path / "in.png"), "sha256": "0" * 64}
    texts = describe(recipe(WIDTH_PX, HEIGHT_PX, **{key: said}))
    assert f">{COMPOSITE_SOURCE_TYPE}<".encode() in texts.xmp
    assert json.loads(texts.sidecar)["digital_source_type"] == COMPOSITE_SOURCE_TYPE
    plain = describe(recipe(WIDTH_PX, HEIGHT_PX))
    assert f">{DIGITAL_SOURCE_TYPE}<".encode() in plain.xmp


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_recipe_comes_back_whole(tmp_path: Path, kind: str, prompt: str) -> None:
    path, wanted = made(
        tmp_path, format=kind, prompt=PROMPTS[prompt], seed=2**63 - 1, strengths=[0.4, 0.3]
    )
    assert Recipe.from_fragments(read_recipe(path)) == wanted
    with Image.open(path) as image:  # the texts harm no reader
        image.load()
    assert pyvips.Image.new_from_file(str(path)).avg() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_xmp_names_a_trained_model_as_the_source(tmp_path: Path, kind: str) -> None:
    path, wanted = made(tmp_path, format=kind, prompt=PROMPTS["markup"])
    packet = pyvips.Image.new_from_file(str(path)).get("xmp-data")
    with Image.open(path) as image:
        assert bytes(image.info["xmp"]).rstrip(b"\0") == bytes(packet)
    tree = ElementTree.fromstring(packet)
    source = tree.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    caption = tree.find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
    assert source is not None
    assert source.text == DIGITAL_SOURCE_TYPE
    assert caption is not None
    assert caption.text == wanted.prompt


def test_png_and_jpeg_carry_the_a1111_text(tmp_path: Path) -> None:
    choices = {"prompt": PROMPTS["scripts"], "negative_prompt": "blur", "scheduler": "ddim"}
    path, wanted = made(tmp_path, format="png", **choices)
    text = parameters_text(wanted)
    with Image.open(path) as image:
        assert image.info["parameters"] == text
    path, _ = made(tmp_path, format="jpeg", **choices)
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + text.encode("utf-16-be")
    lines = text.split("\n")
    assert lines[:2] == [PROMPTS["scripts"], "Negative prompt: blur"]
    assert lines[2].startswith("Steps: 12, Sampler: ddim, Seed: 0, Size: 200x136")


@pytest.mark.parametrize("kind", KINDS)
def test_no_metadata_leaves_no_trace_of_the_prompt(tmp_path: Path, kind: str) -> None:
    path, wanted = made(tmp_path, format=kind, metadata=False, prompt="secretword")
    data = path.read_bytes()
    assert b"secretword" not in data
    assert "secretword".encode("utf-16-be") not in data
    assert b"DigitalSourceType" not in data
    facts = inspect(path)
    assert facts.recipe is None
    assert (facts.width_px, facts.height_px) == (wanted.width_px, wanted.height_px)
    with pytest.raises(RequestError, match=r"holds no recipe.*--no-metadata.*options"):
        read_recipe(path)


def test_inspection_tells_size_and_levels(tmp_path: Path) -> None:
    path, _ = made(tmp_path, tile_px=64)
    facts = inspect(path)
    assert (facts.format, facts.width_px, facts.height_px) == ("tiff", WIDTH_PX, HEIGHT_PX)
    assert facts.levels == 3  # 200, 100, 50
    assert facts.bytes == path.stat().st_size


def test_a_recipe_as_json_is_read_too(tmp_path: Path) -> None:
    wanted = recipe(64, 64)
    path = tmp_path / "recipe.json"
    path.write_text(wanted.to_json(), encoding="utf-8")
    assert Recipe.from_fragments(read_recipe(path)) == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [3, 4, 20, 700, 5000, -100, -1])
def test_a_truncated_output_is_refused_by_name(
    tmp_path: Path, kind: str, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = made(tmp_path, format=kind)
    os.truncate(path, kept if kept > 0 else path.stat().st_size + kept)
    with pytest.raises(RequestError, match=path.name):
        read_recipe(path)
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, kind: str) -> None:
    path, _ = made(tmp_path, format=kind)
    data = path.read_bytes()
    rng = np.random.default_rng(11)
    for _ in range(150):
        damaged = bytearray(data)
        for place in rng.integers(0, min(len(data), 4000), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        message = ""
        try:
            read_recipe(path)
        except RequestError as error:
            message = str(error)
        assert not message or path.name in message


@pytest.mark.parametrize("content", [b"", b"\0", b"<html>", b"GIF89a", b"\xff\xfe\xfa", b"{}}"])
def test_no_picture_and_no_recipe_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing.png"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"thing\.png"):
        read_recipe(path)
    with pytest.raises(RequestError, match=r"thing\.png"):
        inspect(path)


@pytest.mark.parametrize("content", [b"RIFF\x10\0\0\0WAVEfmt ", b"GIF89a", b"a letter"])
def test_an_unknown_kind_of_file_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing.webp"
    path.write_bytes(content)
    for read in (read_recipe, inspect):
        with pytest.raises(RequestError, match=r"thing\.webp is no TIFF, PNG, JPEG, .* or recipe"):
            read(path)


@pytest.mark.parametrize("trailer", [b"\0", b"a video" * 2000, b"\xff" * 2**20])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_bytes_behind_the_end_are_no_truncation(
    tmp_path: Path, suffix: str, trailer: bytes
) -> None:
    path = tmp_path / f"foreign{suffix}"
    Image.fromarray(picture(60, 40)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + trailer)
    facts = inspect(path)
    assert (facts.width_px, facts.height_px) == (60, 40)
    path.write_bytes(whole[:-1])
    with pytest.raises(RequestError, match="truncated"):
        inspect(path)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.tif", tmp_path):
        with pytest.raises(RequestError, match=path.name):
            read_recipe(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_of_other_programs_have_a_size_and_no_recipe(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"foreign{suffix}"
    Image.fromarray(picture(60, 40)).save(path, comment="hires_recipe, not")
    facts = inspect(path)
    assert (facts.width_px, facts.height_px, facts.recipe) == (60, 40, None)


def test_a_picture_above_pillows_limit_is_read_without_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    tifffile.imwrite(
        path, shape=(60_000, 60_000), dtype="uint8", bigtiff=True, photometric="minisblack"
    )
    facts = inspect(path)
    path.unlink()
    assert (facts.width_px, facts.height_px) == (60_000, 60_000)
