"""Contact sheets: the right pictures in the right cells, captions in any script, faults named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from hirescli.output.captions import Caption, Captions, _cut, _font, _lines
from hirescli.output.finalise import finalise
from hirescli.output.sheet import entry, layout
from hirescli.output.spool import Spool
from hirescli.recipe import Recipe

COLOURS = [(200, 30, 30), (30, 160, 40), (40, 60, 210), (220, 200, 40)]


def plain(colour: tuple[int, int, int], width_px: int, height_px: int) -> NDArray[np.uint8]:
    return np.full((height_px, width_px, 3), colour, np.uint8)


def output(path: Path, pixels: NDArray[np.uint8], **choices: object) -> Path:
    height_px, width_px, _ = pixels.shape
    said = {"prompt": "dunes", "size": f"{width_px}x{height_px}", "tile_px": 64, **choices}
    spool = path.with_suffix(".spool")
    with Spool.create(spool, width_px=width_px, height_px=height_px) as made:
        made.write_rows(0, pixels)
    finalise(spool, path, recipe=Recipe.from_fragments(said))
    spool.unlink()
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    sizes = [(512, 512), (640, 320), (300, 600), (100, 80)]
    return [
        output(tmp_path / f"{i}.tif", plain(colour, *size), seed=i)
        for i, (colour, size) in enumerate(zip(COLOURS, sizes, strict=True))
    ]


def test_pictures_in_their_cells(hires: Callable, pictures: list[Path]) -> None:
    ran = hires("sheet", *pictures, "-o", "s.jpg", "--thumb-px", 256, "--columns", 2, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    entries = [entry(path) for path in pictures]
    where = layout(entries, columns=2, thumb_px=256)
    with Image.open("s.jpg") as sheet:
        assert sheet.size == (told["width_px"], told["height_px"])
        for index, colour in enumerate(COLOURS):
            row, column = divmod(index, 2)
            x0 = 2 * where.space_px + column * (where.cell_width_px + where.space_px)
            bottom = 2 * where.space_px + row * where.row_px + where.cell_height_px
            assert sheet.getpixel((x0 + 10, bottom - 10)) == pytest.approx(colour, abs=4)
            below = sheet.crop((x0, bottom + 2, x0 + 200, bottom + where.caption_px))
            assert (
                min(p for p, _ in [below.convert("L").getextrema()]) < 120
            )  # something is written
    assert sorted(Path().iterdir()) == [Path("s.jpg")]


def test_small_pictures_are_not_enlarged(hires: Callable, pictures: list[Path]) -> None:
    assert hires("sheet", pictures[3], "-o", "s.png").code == 0
    with Image.open("s.png") as sheet:
        colours = np.asarray(sheet).reshape(-1, 3)
    assert (np.abs(colours.astype(int) - COLOURS[3]).max(axis=1) < 3).sum() == 100 * 80


def test_a_level_of_the_pyramid_is_read(tmp_path: Path, hires: Callable) -> None:
    """The large level is damaged: who reads the small one does not notice."""
    path = output(tmp_path / "a.tif", plain(COLOURS[0], 1024, 1024))
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(bytes(count))
    assert hires("sheet", path, "-o", "s.jpg", "--thumb-px", 128).code == 0


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 12, 50, 101])
def test_columns_are_sensible(pictures: list[Path], count: int) -> None:
    where = layout([entry(pictures[0])] * count, columns=None, thumb_px=128)
    rows = -(-count // where.columns)
    assert rows * where.columns - count < where.columns
    if count >= 4:
        assert 0.7 < where.width_px / where.height_px < 2.8


PROMPTS = {
    "japanese": "夕焼けの湖と雪山、" * 8,
    "arabic": "جبال ثلجية فوق بحيرة", "emoji": "🌋 by night 🌌",
    "controls": "a\x00b\x1b[31m\u202e\nc", "one long word": "dune" * 90, "empty": "",
    "hindi": "झील के ऊपर बर्फीले पहाड़", "markup": "<b>&amp;</b>",
}  # fmt: skip


@pytest.mark.parametrize("system", [True, False], ids=["system fonts", "Pillow's own"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_prompts_of_all_kinds(prompt: str, system: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not system:
        monkeypatch.setattr("hirescli.output.captions._FONTS", ())
        monkeypatch.setattr("hirescli.output.captions._SCRIPTS", ())
    captions = Captions(256)
    image = Image.new("RGB", (256, captions.height_px), "white")
    captions.draw(image, Caption("seed 1", prompt), 0, 0, 256)
    assert image.convert("L").getextrema()[0] < 160


def test_text_is_broken_between_words_and_cut() -> None:
    font = _font(16, "abc")
    lines = _lines("a very long prompt of dunes and of the sea and of the sky above", font, 150)
    assert len(lines) == 2
    assert lines[1].endswith("...")
    assert all(font.getlength(line) <= 150 for line in lines)
    assert lines[0].split(" ")[-1] in ["a", "very", "long", "prompt", "of", "dunes", "and", "of"]
    assert _cut("short", font, 150) == "short"


def test_results_of_a_batch(hires: Callable, pictures: list[Path]) -> None:
    rows = [
        {"index": 1, "status": "done", "output": str(pictures[0])},
        {"index": 2, "status": "failed", "output": "missing.tif"},
        {"index": 3, "status": "skipped", "output": str(pictures[1])},
        {"index": 1, "status": "skipped", "output": str(pictures[0])},
    ]
    Path("results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = hires("sheet", "results.jsonl", "-o", "s.jpg", "--json")
    assert json.loads(ran.out)["pictures"] == [str(path) for path in pictures[:2]]


@pytest.mark.parametrize("text", ["", "no json\n", "[1]\n", '{"status": "failed"}\n'])
def test_results_that_are_none(hires: Callable, text: str) -> None:
    Path("results.jsonl").write_text(text)
    ran = hires("sheet", "results.jsonl", "-o", "s.jpg")
    assert ran.code == 2
    assert "results.jsonl" in ran.err


def test_faults_are_named_together(hires: Callable, pictures: list[Path]) -> None:
    cut = pictures[1]
    cut.write_bytes(cut.read_bytes()[:-2000])
    Path("text.tif").write_text("no picture")
    ran = hires("sheet", pictures[0], cut, "missing.tif", "text.tif", "-o", "s.jpg")
    assert ran.code == 2
    for name in (cut.name, "missing.tif", "text.tif"):
        assert name in ran.err
    assert not Path("s.jpg").exists()


def test_pixels_that_are_damaged(hires: Callable, tmp_path: Path) -> None:
    rows = (np.arange(600) % 251).astype(np.uint8)[:, None, None] + np.zeros((1, 600, 3), np.uint8)
    path = output(tmp_path / "a.png", rows, format="png", tile_px=512)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    ran = hires("sheet", path, "-o", "s.jpg")
    assert ran.code == 2
    assert "a.png" in ran.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "s.tif"], ["-o", "s"], ["-o", "no/s.jpg"], ["-o", "s.jpg", "--thumb-px", "10"],
        ["-o", "s.jpg", "--columns", "0"], ["-o", "s.jpg", "--columns", "x"],
    ],
)  # fmt: skip
def test_wrong_requests(hires: Callable, pictures: list[Path], words: list[str]) -> None:
    assert hires("sheet", pictures[0], *words).code == 2
    assert list(Path().iterdir()) == []


def test_too_large_a_sheet(hires: Callable, pictures: list[Path]) -> None:
    ran = hires("sheet", *[pictures[0]] * 150, "-o", "s.jpg", "--columns", 1)
    assert ran.code == 2
    assert "--thumb-px" in ran.err


def test_what_stands_is_not_replaced_unasked(hires: Callable, pictures: list[Path]) -> None:
    Path("s.jpg").write_text("mine")
    assert hires("sheet", pictures[0], "-o", "s.jpg").code == 2
    assert Path("s.jpg").read_text() == "mine"
    assert hires("sheet", pictures[0], "-o", "s.jpg", "--overwrite").code == 0
    assert hires("sheet", "s.jpg", "-o", "s.jpg", "--overwrite").code == 2


@pytest.mark.parametrize("pyramid", ["pages", "subifd", "none"])
def test_zstd(hires: Callable, tmp_path: Path, pyramid: str) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    pixels = plain(COLOURS[0], 512, 256)
    path = output(folder / "z.tif", pixels, compression="zstd", pyramid=pyramid)
    assert hires("sheet", path, "-o", "s.png", "--thumb-px", "128").code == 0
    with Image.open("s.png") as sheet:
        colours = np.asarray(sheet).reshape(-1, 3)
    assert (np.abs(colours.astype(int) - COLOURS[0]).max(axis=1) < 3).sum() == 128 * 64
    assert list(Path().iterdir()) == [Path("s.png")]


@pytest.mark.parametrize("form", ["tiff", "png", "jpeg", "webp", "avif"])
def test_captions_of_all_formats(tmp_path: Path, form: str) -> None:
    path = output(tmp_path / "picture", plain(COLOURS[0], 64, 64), format=form, seed=7)
    caption = entry(path).caption
    assert caption.head.startswith("seed 7 ")
    assert caption.text == "dunes"


@pytest.mark.parametrize("size", [(48, 48), (60, 600)])
def test_small_and_narrow_pictures_have_room_for_their_captions(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    found = entry(output(tmp_path / "a.tif", plain(COLOURS[0], *size), seed=12345))
    where = layout([found], columns=None, thumb_px=384)
    head = found.caption.head
    assert _cut(head, _font(Captions(384).size_px, head), where.cell_width_px) == head
