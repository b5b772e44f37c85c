"""`hires export`: other formats of finished pictures, ours and those of other programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, PngImagePlugin

from hirescli.output.finalise import finalise
from hirescli.output.metadata import inspect, read_recipe
from hirescli.output.spool import Spool
from hirescli.recipe import Recipe

ROOT = Path(__file__).parent.parent.parent
WIDTH_PX, HEIGHT_PX = 300, 200
KINDS = ["o.png", "o.jpg", "o.webp", "o.avif", "o.dzi", "o.iiif", "o.zoomify", "o.print.tif"]


def picture(bits: int = 8, seed: int = 3) -> np.ndarray[Any, Any]:
    dtype = np.uint8 if bits == 8 else np.uint16
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**bits, (HEIGHT_PX, WIDTH_PX, 3), dtype=dtype)


def ours(folder: Path, name: str, bits: int = 8, **choices: Any) -> Recipe:
    """Make a file of ours, as a run does."""
    asked = {"prompt": "Düne ☃", "size": f"{WIDTH_PX}x{HEIGHT_PX}", "bits": bits, "dpi": 254.0}
    recipe = Recipe.from_fragments(asked, choices)
    spool = folder / f"spool-{name}"
    with Spool.create(spool, width_px=WIDTH_PX, height_px=HEIGHT_PX, bits=bits) as made:
        made.write_rows(0, picture(bits))
    finalise(spool, folder / name, recipe=recipe)
    spool.unlink()
    return recipe


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "source", [{}, {"compression": "zstd"}, {"pyramid": "subifd"}, {"bits": 16}], ids=str
)
def test_it_gives_the_bytes_that_a_run_gives(
    hires: Callable, tmp_path: Path, kind: str, source: dict[str, Any]
) -> None:
    """From a lossless TIFF: the same spool and recipe."""
    recipe = ours(Path(), "in.tif", **source)
    assert hires("export", "in.tif", "--to", kind).code == 0
    made = Recipe.from_fragments(read_recipe(Path(kind)))
    file_keys = {"format", "bits", "compression", "pyramid", "tile_layout"}
    assert made.model_dump(exclude=file_keys) == recipe.model_dump(exclude=file_keys)
    assert made.bits == (recipe.bits if kind == "o.png" else 8)
    spool = tmp_path / "spool.tif"
    with Spool.create(spool, width_px=WIDTH_PX, height_px=HEIGHT_PX, bits=recipe.bits) as again:
        again.write_rows(0, picture(recipe.bits))
    (tmp_path / "run").mkdir()
    direct = finalise(spool, tmp_path / "run" / kind, recipe=made)
    ran = hires("export", "in.tif", "--to", kind, "--overwrite", "--json")
    (file,) = json.loads(ran.out)["files"]
    assert file["sha256"] == direct.sha256
    left = {path.name for path in Path().iterdir()}
    assert left - {"o_files"} == {"in.tif", kind}


@pytest.mark.parametrize("compression", ["deflate", "zstd", "lzw"])
def test_from_one_tiff_to_another_and_back(hires: Callable, compression: str) -> None:
    ours(Path(), "in.tif", bits=16)
    words = ("--compression", compression, "--pyramid", "none", "--tile-px", 64)
    assert hires("export", "in.tif", "--to", "there.tif", *words).code == 0
    assert np.array_equal(tifffile.imread("there.tif"), picture(16))
    assert hires("export", "there.tif", "--to", "back.tif").code == 0
    assert Path("back.tif").read_bytes() == Path("in.tif").read_bytes()


def test_several_targets_at_once(hires: Callable) -> None:
    ours(Path(), "in.tif")
    words = [word for kind in KINDS for word in ("--to", kind)]
    ran = hires("export", "in.tif", *words, "--quality", 70, "--dpi", 72)
    assert (ran.code, ran.out.split()) == (0, KINDS)
    assert inspect(Path("o.jpg")).recipe["quality"] == 70
    assert all(inspect(Path(kind)).recipe["dpi"] == 72 for kind in KINDS)


def foreign(path: Path, **options: Any) -> None:
    said = {"photometric": "rgb", "metadata": None, "software": False} | options
    tifffile.imwrite(path, picture(), **said)


@pytest.mark.parametrize(
    "options",
    [{}, {"rowsperstrip": 7}, {"tile": (64, 48)}, {"compression": "zlib"}, {"bigtiff": True},
     {"byteorder": ">"}, {"description": "x", "metadata": {}},
     {"compression": "zstd", "tile": (64, 64)},
     {"compression": "zstd", "tile": (64, 64), "predictor": True, "byteorder": ">"}],
    ids=str,
)  # fmt: skip
def test_tiffs_of_anybody(hires: Callable, options: dict[str, Any]) -> None:
    foreign(Path("in.tif"), **options)
    ran = hires("export", "in.tif", "--to", "o.png")
    assert ran.code == 0, ran.err
    assert np.array_equal(imagecodecs.imread("o.png"), picture())
    assert inspect(Path("o.png")).recipe is None
    assert b"hires" not in Path("o.png").read_bytes()


def test_a_spool_of_a_run_that_is_under_way(hires: Callable) -> None:
    with Spool.create(Path("spool.tif"), width_px=WIDTH_PX, height_px=HEIGHT_PX, bits=16) as made:
        made.write_rows(0, picture(16)[:100])
    assert hires("export", "spool.tif", "--to", "o.png").code == 0
    seen = imagecodecs.imread("o.png")
    assert np.array_equal(seen[:100], picture(16)[:100])
    assert not seen[100:].any()


def test_8_bits_and_16(hires: Callable) -> None:
    ours(Path(), "deep.tif", bits=16)
    ours(Path(), "flat.tif")
    assert hires("export", "deep.tif", "--to", "d.png", "--bits", 8).code == 0
    assert np.array_equal(imagecodecs.imread("d.png"), np.rint(picture(16) / 257))
    assert hires("export", "flat.tif", "--to", "f.png", "--bits", 16).code == 0
    assert np.array_equal(imagecodecs.imread("f.png"), picture().astype(int) * 257)


def test_what_another_program_said_goes_along(hires: Callable) -> None:
    text = "a cat\nNegative prompt: ugly\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta xmlns:x='adobe:ns:meta/'>theirs</x:xmpmeta>")
    Image.fromarray(picture()).save("in.png", pnginfo=info, dpi=(150, 150))
    for name in ("o.jpg", "o.webp", "o.avif", "p.png", "o.dzi"):
        assert hires("export", "in.png", "--to", name).code == 0
        facts = inspect(Path(name))
        assert facts.recipe is None
        assert facts.parameters == {
            "prompt": "a cat", "negative_prompt": "ugly", "steps": 20, "sampler": "Euler a",
            "cfg_scale": 7.0, "seed": 42,
        }  # fmt: skip
    with Image.open("o.jpg") as image:
        assert image.info["dpi"] == (150, 150)
        assert b"theirs" in image.info["xmp"]
    shown = hires("info", "o.jpg")
    assert "another program's picture" in shown.out
    assert "cfg_scale        7.0" in shown.out
    assert json.loads(hires("info", "o.webp", "--json").out)["parameters"]["seed"] == 42


def test_the_text_in_a_tiff_goes_on(hires: Callable) -> None:
    """Also beside XMP of another program, and with what XML sets apart; it is written once."""
    text = "a <cat> & dog\x0b &amp; 猫\nSteps: 20, Seed: 42"
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf='
        '"http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="theirs"/></rdf:RDF></x:xmpmeta>'
    )
    info = PngImagePlugin.PngInfo()
    info.add_itxt("parameters", text)
    info.add_itxt("XML:com.adobe.xmp", xmp)
    Image.fromarray(picture()).save("in.png", pnginfo=info)
    for source, target in (
        ("in.png", "a.tif"),
        ("a.tif", "b.print.tif"),
        ("b.print.tif", "c.png"),
    ):
        assert hires("export", source, "--to", target).code == 0
        assert inspect(Path(target)).parameters_text == text.replace("\x0b", " ")  # no XML
    with tifffile.TiffFile("b.print.tif") as tiff:
        (comment,) = ElementTree.fromstring(tiff.pages[0].tags[700].value).iter(
            "{http://ns.adobe.com/exif/1.0/}UserComment"
        )
    assert "".join(comment.itertext()) == text.replace("\x0b", " ")


def test_compressed_texts_of_a_png(hires: Callable) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a café\nSteps: 20, Seed: 42", zip=True)
    Image.fromarray(picture()).save("in.png", pnginfo=info)
    assert b"zTXt" in Path("in.png").read_bytes()
    assert json.loads(hires("info", "in.png", "--json").out)["parameters"]["prompt"] == "a café"


def test_no_metadata(hires: Callable) -> None:
    ours(Path(), "in.tif", prompt="secretword")
    assert hires("export", "in.tif", "--to", "o.tif", "--no-metadata").code == 0
    assert b"secretword" not in Path("o.tif").read_bytes()
    assert np.array_equal(pyvips.Image.new_from_file("o.tif").numpy(), picture())


@pytest.mark.parametrize("kind", [*KINDS, "o.tif"])
@pytest.mark.parametrize("source", ["in.png", "in.jpg", "in.webp"])
def test_an_a1111_text_alone_goes_into_every_format(
    hires: Callable, kind: str, source: str
) -> None:
    text = "a cat ☃\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.fromarray(picture()).save("in.png", pnginfo=info)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    for name in ("in.jpg", "in.webp"):
        Image.fromarray(picture()).save(name, exif=exif)
    ran = hires("export", source, "--to", kind, "--to", "z.png")
    assert ran.code == 0, ran.err
    assert inspect(Path("z.png")).parameters_text == text
    assert inspect(Path(kind)).parameters_text == text


@pytest.mark.parametrize("recipe", ['{"new": 1}', "{damaged"], ids=str)
def test_no_metadata_reads_no_recipe(hires: Callable, recipe: str) -> None:
    foreign(Path("in.tif"), description=f'{{"hires_recipe": {recipe}}}')
    ran = hires("export", "in.tif", "--to", "o.png")
    assert ran.code == 2
    ran = hires("export", "in.tif", "--to", "o.png", "--no-metadata")
    assert ran.code == 0, ran.err
    assert np.array_equal(imagecodecs.imread("o.png"), picture())


def test_no_metadata_leaves_texts_of_others_behind(hires: Callable) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "secretword\nSteps: 20, Seed: 1")
    info.add_itxt(
        "XML:com.adobe.xmp", "<x:xmpmeta xmlns:x='adobe:ns:meta/'>secretword</x:xmpmeta>"
    )
    Image.fromarray(picture()).save("in.png", pnginfo=info, dpi=(150, 150))
    for name in ("o.tif", "o.png", "o.webp"):
        assert hires("export", "in.png", "--to", name, "--no-metadata").code == 0
        assert b"secretword" not in Path(name).read_bytes()
        with Image.open(name) as image:
            assert name == "o.webp" or image.info["dpi"][0] == pytest.approx(150, abs=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["in.tif", "--to", "o.bmp"], "no known suffix"),
        (["in.tif", "--to", "o.jpg", "--bits", 16], "o.jpg holds 8 bits"),
        (["in.tif", "--to", "o.png", "--quality", 50], "quality 50 has no effect on o.png"),
        (["in.tif", "--to", "o.jpg", "--quality", 500], "quality: 500"),
        (["in.tif", "--to", "o.png", "--to", "o.png"], "two files would be o.png"),
        (["in.tif", "--to", "in.tif", "--overwrite"], "would replace its own source"),
        (["in.tif", "--to", "there.png"], "there.png exists; use --overwrite"),
        (["in.tif", "--to", "none/o.png"], "does not exist"),
        (["nowhere.tif", "--to", "o.png"], "nowhere.tif cannot be read"),
        (["cut.tif", "--to", "o.png"], "cut.tif is truncated"),
        (["head.tif", "--to", "o.png"], "head.tif is"),
        (["flipped.tif", "--to", "o.png"], "flipped.tif is damaged"),
        (["text.tif", "--to", "o.png"], "text.tif is no"),
        (["empty.tif", "--to", "o.png"], "empty.tif is empty"),
        ([".", "--to", "o.png"], "is a folder"),
        (["strips.tif", "--to", "o.png"], "zstd inside in a layout"),
    ],
)
def test_what_is_refused(hires: Callable, words: list[object], said: str) -> None:
    ours(Path(), "in.tif")
    data = Path("in.tif").read_bytes()
    Path("cut.tif").write_bytes(data[:-100])
    Path("head.tif").write_bytes(data[:3000])
    ours(Path(), "zstd.tif", compression="zstd")
    packed = Path("zstd.tif").read_bytes()
    flipped = bytes((packed[20_000] ^ 1,))
    Path("flipped.tif").write_bytes(packed[:20_000] + flipped + packed[20_001:])
    Path("text.tif").write_text("hello")
    Path("empty.tif").write_bytes(b"")
    Path("there.png").write_text("mine")
    foreign(Path("strips.tif"), compression="zstd")
    before = sorted(Path().rglob("*"))
    ran = hires("export", *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert sorted(Path().rglob("*")) == before


def test_json_says_what_failed(hires: Callable) -> None:
    ran = hires("export", "nowhere.tif", "--to", "o.png", "--json")
    assert json.loads(ran.out)["exit_code"] == ran.code == 2


def test_it_loads_no_model_library(tmp_path: Path) -> None:
    ours(tmp_path, "in.tif")
    code = (
        "import sys; from hirescli.cli.app import run; code = run(sys.argv[1:]); "
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "export", "in.tif", "--to", "o.dzi"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["o.dzi", "[]"]
