import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hirescli.errors import RequestError
from hirescli.planning.formats import (
    check_format,
    check_options,
    default_output,
    format_for,
    join_name,
    layout_for,
    split_name,
    usual_suffix,
    with_output,
)
from hirescli.recipe import Recipe


@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("a.tif", "tiff"),
        ("a.TIFF", "tiff"),
        ("b/a.png", "png"),
        ("a.b.jpg", "jpeg"),
        ("a.webp", "webp"),
        ("a.avif", "avif"),
        ("a.print.tif", "print"),
        ("a.DZI", "tiles"),
        ("a.zoomify", "tiles"),
        ("a.iiif", "tiles"),
        ("print.tif", "tiff"),
    ],
)
def test_the_suffix_tells_the_format(name: str, fmt: str) -> None:
    assert format_for(Path(name)) == fmt
    assert format_for(Path(name), fmt) == fmt


def test_a_plain_tif_may_be_a_print_file_in_words() -> None:
    assert format_for(Path("a.tif"), "print") == "print"
    assert format_for(Path("a.tif")) == "tiff"


@pytest.mark.parametrize(
    ("name", "layout"), [("a.dzi", "dz"), ("a.zoomify", "zoomify"), ("a.iiif", "iiif3")]
)
def test_the_suffix_tells_the_layout_of_tiles(name: str, layout: str) -> None:
    recipe = Recipe.from_fragments({"prompt": "a", "size": 64})
    made = with_output(recipe, Path(name))
    assert (made.format, made.tile_layout) == ("tiles", layout)
    assert usual_suffix(made) == Path(name).suffix
    other = {"dz": "iiif3", "zoomify": "dz", "iiif3": "zoomify"}[layout]
    with pytest.raises(RequestError, match=f"--tile-layout says {other}; name it a"):
        layout_for(Path(name), other)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("d/a.tif", ("a", ".tif")),
        ("a.b.jpg", ("a.b", ".jpg")),
        ("a.Print.TIF", ("a", ".Print.TIF")),
        (".print.tif", (".print", ".tif")),
        ("a.bmp", ("a", ".bmp")),
        ("a", ("a", "")),
    ],
)
def test_names_are_taken_apart(name: str, parts: tuple[str, str]) -> None:
    assert split_name(Path(name)) == parts
    assert join_name(*parts) == Path(name).name


def test_a_name_keeps_its_format() -> None:
    assert join_name("a.print.print", ".tif") == "a.tif"
    assert join_name("a.print", ".png") == "a.print.png"


def test_without_a_name_the_stated_format_holds() -> None:
    assert format_for(None) == "tiff"
    assert format_for(None, "png") == "png"


@pytest.mark.parametrize(
    ("name", "stated", "said"),
    [
        (
            "a.bmp",
            None,
            r'no known suffix \("\.bmp"\); use one of \.tif, \.tiff, \.png, \.jpg, \.jpeg, \.webp',
        ),
        ("a", None, "no suffix.*use one of .tif"),
        ("a.png", "tiff", "is png by its suffix.*name it a.tif"),
        ("a.print.tif", "tiff", r"is print by its suffix.*name it a\.tif$"),
        ("a.PRINT.tiff", "tiff", r"name it a\.tif$"),
        ("a.print.png", "tiff", r"name it a\.tif$"),
        ("a.b.png", "tiff", r"name it a\.b\.tif$"),
        ("a.png", "print", r"name it a\.tif"),
        (".webp", None, "no suffix"),
        (None, "gif", 'format "gif" is unknown'),
    ],
)
def test_other_names_are_refused(name: str | None, stated: str | None, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        format_for(Path(name) if name else None, stated)


@pytest.mark.parametrize(
    ("fmt", "size", "said"),
    [
        ("webp", (16384, 16384), "16384x16384 px.*16383 px; use tiff or png or jpeg"),
        ("jpeg", (65504, 16384), "65504x16384 px.*65500 px; use tiff or png"),
        ("avif", (16392, 64), "16392x64 px.*16384 px; use tiff"),
        ("print", (32768, 32768), r"3\.2 GB of pixels, at most 3\.0 GB"),
    ],
)
def test_formats_that_cannot_hold_the_size(fmt: str, size: tuple[int, int], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        check_format(fmt, *size)


@pytest.mark.parametrize("fmt", ["tiff", "png", "jpeg", "avif", "tiles", "print"])
def test_formats_that_hold_16384(fmt: str) -> None:
    check_format(fmt, 16384, 16384)


def test_a_recipe_takes_its_format_from_the_output() -> None:
    open_format = Recipe.from_fragments({"prompt": "a", "size": 64})
    assert with_output(open_format, Path("a.png")).format == "png"
    assert with_output(open_format, None).format == "tiff"
    default = Recipe.from_json(open_format.to_json())
    assert with_output(default, Path("a.png")).format == "png"
    stated = Recipe.from_fragments({"prompt": "a", "size": 64, "format": "jpeg"})
    with pytest.raises(RequestError, match="by its suffix"):
        with_output(stated, Path("a.png"))


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"format": "png", "compression": "lzw"}, "compression lzw is for tiff only"),
        ({"format": "jpeg", "tile_px": 256}, "tile_px 256 is for tiff and tiles only"),
        ({"format": "png", "pyramid": "none"}, "pyramid none is for tiff only"),
        ({"format": "tiff", "tile_format": "png"}, "tile_format png is for tiles only"),
        ({"format": "tiles", "tile_format": "png", "quality": 80}, "quality 80 is for jpeg"),
        ({"format": "jpeg", "bits": 16}, "jpeg holds 8 bits a sample, not 16"),
        ({"format": "print", "bits": 16}, "print holds 8 bits"),
        ({"format": "tiles", "bits": 16}, "tiles with jpeg inside holds 8 bits"),
        ({"compression": "jpeg", "bits": 16}, "tiff with jpeg inside holds 8 bits"),
        ({"format": "tiff", "quality": 80}, "quality 80 is for jpeg"),
    ],
)
def test_choices_without_effect_are_refused(choices: dict[str, object], said: str) -> None:
    recipe = Recipe.from_fragments({"prompt": "a", "size": 64}, choices)
    with pytest.raises(RequestError, match=said):
        check_options(recipe)


def test_quality_is_for_jpeg_inside_tiff_too() -> None:
    choices = {"prompt": "a", "size": 64, "compression": "jpeg", "quality": 80}
    check_options(Recipe.from_fragments(choices))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A sea, at night!", "a-sea-at-night-seed7.png"),
        ("Dünen", "dunen-seed7.png"),
        ("../../x", "x-seed7.png"),
        ("-rf", "rf-seed7.png"),
        ("CON", "con-seed7.png"),
    ],
)
def test_default_names(prompt: str, name: str) -> None:
    recipe = Recipe(prompt=prompt, width_px=64, height_px=64, seed=7, format="png")
    assert default_output(recipe) == Path(name)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), max_size=200))
def test_default_names_are_safe(text: str) -> None:
    recipe = Recipe(prompt="x" + text, width_px=64, height_px=64)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,59}-seed0\.tif", str(default_output(recipe)))


def test_prompts_that_lose_letters_keep_apart() -> None:
    def name(prompt: str) -> str:
        return str(default_output(Recipe(prompt=prompt, width_px=64, height_px=64)))

    assert name("بحر") != name("جبل")
    assert name("sea " * 40 + "a") != name("sea " * 40 + "b")
    assert name("🌊").startswith("image-")
