from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hirescli.errors import RequestError
from hirescli.planning.print_size import parse_print, printed, printed_words
from hirescli.recipe import Recipe


@pytest.mark.parametrize(
    ("text", "size", "dpi"),
    [
        ("60x40cm@300", (7088, 4728), 300),
        ("24x16in@300", (7200, 4800), 300),  # exact
        (" 24X16 IN@300dpi ", (7200, 4800), 300),
        ("60 x 40 cm @ 300 dpi", (7088, 4728), 300),
        ("600x400mm@300", (7088, 4728), 300),
        ("25.4 x 50.8 mm @ 100", (104, 200), 100),
        ("2.54x5.08cm@96", (96, 192), 96),
        ("1×1in@72.5", (80, 80), 72.5),  # noqa: RUF001
    ],
)
def test_sizes_on_paper(text: str, size: tuple[int, int], dpi: float) -> None:
    asked = parse_print(text)
    assert asked.fragment() == {"width_px": size[0], "height_px": size[1], "dpi": dpi}


def test_what_is_rounded_is_said() -> None:
    said = parse_print("60x40cm@300").said()
    assert "7086.61x4724.41 px" in said
    assert "made are 7088x4728 px" in said
    assert "60.01x40.03 cm" in said
    assert "25.4x50.8 mm at 100 dpi is 100x200 px" in parse_print("25.4x50.8mm@100").said()
    assert parse_print("24x16in@300").said() == "24x16 in at 300 dpi is 7200x4800 px"


@pytest.mark.parametrize(
    "text",
    ["", "60x40", "60x40cm", "60x40@300", "60cm@300", "60x40km@300", "60x40cm 300",
     "ax40cm@300", "-1x4cm@300",
     "60x40cm@", "60x40cm@0", "60x40cm@20000", "0x40cm@300", "1e3x40cm@300", "60x40cm@nan",
     "6\u0660x40cm@300"],
)  # fmt: skip
def test_what_is_no_size_on_paper_is_named(text: str) -> None:
    with pytest.raises(RequestError, match="print size"):
        parse_print(text)


@given(
    st.decimals(1, 500, places=2), st.decimals(1, 500, places=2),
    st.sampled_from(["cm", "in"]), st.integers(20, 1200),
)  # fmt: skip
def test_the_pixels_cover_the_paper_and_no_more(
    width: object, height: object, unit: str, dpi: int
) -> None:
    asked = parse_print(f"{width}x{height}{unit}@{dpi}")
    for px, side in ((asked.width_px, asked.width_in), (asked.height_px, asked.height_in)):
        assert px % 8 == 0
        assert 0 <= px - side * dpi < 8


def test_any_picture_has_a_size_on_paper() -> None:
    recipe = Recipe(prompt="a", width_px=16384, height_px=8192)
    assert printed(recipe) == {
        "dpi": 300, "width_cm": 138.718, "height_cm": 69.359, "width_in": 54.613,
        "height_in": 27.307,
    }  # fmt: skip
    assert printed_words(recipe) == "138.7x69.4 cm (54.6x27.3 in) at 300 dpi"
