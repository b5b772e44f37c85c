from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hirescli.errors import RequestError
from hirescli.models.registry import find_card
from hirescli.planning.also import check_apart, with_also
from hirescli.planning.formats import check_options
from hirescli.planning.machine import Machine
from hirescli.planning.output_cost import encoder_bytes, output_bytes, written_bytes
from hirescli.planning.plan import Plan, make_plan
from hirescli.recipe import Recipe

CARD = find_card("builtin")
MACHINE = Machine(cores=2, memory_bytes=16 * 10**9, disk_free_bytes=lambda _: 10**12)


def recipe(**choices: Any) -> Recipe:
    return Recipe.from_fragments({"prompt": "a", "size": 512}, choices)


def plan(also: tuple[str, ...] = (), memory: int | None = None, **choices: Any) -> Plan:
    main, files = with_also(recipe(**choices), [Path(name) for name in also])
    return make_plan(main, CARD, machine=MACHINE, also=files, memory_bytes=memory)


def test_every_file_takes_what_says_something_in_it() -> None:
    asked = recipe(compression="lzw", quality=70, tile_px=256, bits=16)
    names = ["a.png", "a.jpg", "a.dzi", "a.iiif", "a.print.tif", "b.tif"]
    main, files = with_also(asked, [Path(name) for name in names])
    made = {each.path.name: each.recipe(main) for each in files}
    for own in (main, *made.values()):
        check_options(own)
    assert (main.format, main.compression, main.quality, main.bits) == ("tiff", "lzw", 90, 16)
    assert (made["a.png"].bits, made["a.png"].compression, made["a.png"].quality) == (
        16, "deflate", 90,
    )  # fmt: skip
    assert (made["a.jpg"].bits, made["a.jpg"].quality, made["a.jpg"].tile_px) == (8, 70, 512)
    assert (made["a.dzi"].bits, made["a.dzi"].quality, made["a.dzi"].tile_px) == (8, 70, 256)
    assert made["a.iiif"].tile_layout == "iiif3"
    assert made["a.print.tif"].format == "print"
    assert made["b.tif"] == main


def test_a_choice_for_no_file_is_refused() -> None:
    main, _ = with_also(recipe(quality=70), [Path("a.png")])
    with pytest.raises(RequestError, match="quality 70 is for jpeg"):
        check_options(main)


@pytest.mark.parametrize(
    ("also", "size", "said"),
    [
        ("a.webp", "16384x8192", "webp cannot hold"),
        ("a.bmp", 512, "no known suffix"),
        ("a.print.tif", 32768, "print cannot hold"),
    ],
)
def test_a_file_that_cannot_be_is_refused(also: str, size: object, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        with_also(recipe(size=size), [Path(also)])


@pytest.mark.parametrize(
    "outputs", [("a.tif", "a.tif"), ("a.dzi", "b.png", "a.dzi"), ("a.dzi", "a_files")]
)
def test_two_files_of_one_name_are_refused(outputs: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="two files would be"):
        check_apart([Path(name) for name in outputs])
    check_apart([Path("a.tif"), Path("a.png"), Path("b/a.tif")])


def test_the_disk_holds_all_files_and_spools_of_their_bits() -> None:
    names = tuple(f"{i}.png" for i in range(16))
    more = plan(names, size=2048)
    assert more.also[0].path == Path("0.png")
    # Beside the last spool, at the end: the output and all files.
    assert more.spool_bytes == pytest.approx(2048 * 2048 * 3 * (1 + 16 + 4 / 3), abs=1)
    deep, one = plan(bits=16), plan()
    assert deep.spool_bytes - one.spool_bytes >= 512 * 512 * 3  # the last spool
    assert output_bytes(deep.recipe) == 2 * output_bytes(one.recipe)


@pytest.mark.parametrize(
    ("choices", "times"),
    [
        ({}, 4 / 3),
        ({"pyramid": "none"}, 1),
        ({"compression": "lzw"}, 1.4 * 4 / 3),
        ({"format": "print"}, 1.4),
        ({"format": "png", "bits": 16}, 2),
        ({"format": "tiles", "tile_format": "png"}, 4 / 3),
        ({"format": "tiles", "quality": 80}, 0.5 * 4 / 3),
        ({"format": "webp", "quality": 80}, 0.5),
    ],
)
def test_an_output_is_a_short_product(choices: dict[str, Any], times: float) -> None:
    assert output_bytes(recipe(**choices)) == pytest.approx(512 * 512 * 3 * times, abs=1)


def test_zstd_takes_the_room_of_a_plain_copy_meanwhile() -> None:
    packed = recipe(compression="zstd")
    assert written_bytes(packed) == 2 * output_bytes(packed)
    assert written_bytes(recipe()) == output_bytes(recipe())


def test_an_encoder_that_holds_the_picture_is_planned() -> None:
    small, large = plan(("a.webp",)), plan(("a.avif",), size=8192)
    assert small.peak_memory_bytes == plan().peak_memory_bytes  # 2 MB are nothing
    assert large.peak_memory_bytes > encoder_bytes(recipe(format="avif", size=8192)) > 2.4e9
    with pytest.raises(RequestError, match=r"avif is encoded whole: that takes 3\.. GB"):
        plan(("a.avif",), memory=2 * 10**9, size=8192)
    little = Machine(cores=2, memory_bytes=2 * 10**9, disk_free_bytes=lambda _: 10**12)
    with pytest.raises(RequestError, match=r"needs 3\.. GB of memory"):
        large.validate(little, Path("a.tif"))


def test_a_further_file_is_checked_like_the_output(tmp_path: Path) -> None:
    planned = plan((str(tmp_path / "a.dzi"), str(tmp_path / "none" / "a.png")))
    with pytest.raises(RequestError, match=r"output folder .*none does not exist"):
        planned.validate(MACHINE, tmp_path / "a.tif")
    (tmp_path / "none").mkdir()
    planned.validate(MACHINE, tmp_path / "a.tif")
    (tmp_path / "a_files").mkdir()
    with pytest.raises(RequestError, match=r"a_files exists; use --overwrite"):
        planned.validate(MACHINE, tmp_path / "a.tif")
    planned.validate(MACHINE, tmp_path / "a.tif", overwrite=True)


def test_the_plan_says_files_and_paper() -> None:
    said = plan(("a.png",)).to_dict()
    assert said["also"] == ["a.png"]
    assert said["print"]["width_cm"] == pytest.approx(512 / 300 * 2.54, abs=0.001)
