"""What every format of an output keeps, one suite that all of them inherit."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pictures import deep_picture, picture, recipe, write_spool
from PIL import Image, ImageCms
from readers import (
    Pixels,
    by_imagecodecs,
    by_openslide,
    by_pillow,
    by_tifffile,
    by_vips,
    deep_zoom_levels,
    first_of,
    iiif_levels,
    psnr,
    tiff_levels,
    zoomify_levels,
)

from hirescli.errors import RequestError, RunError
from hirescli.events import FileWritten, Finalising
from hirescli.output.exif import read_user_comment
from hirescli.output.finalise import FinishedFile, finalise
from hirescli.output.metadata import inspect, read_recipe
from hirescli.output.parameters import parameters_text
from hirescli.output.places import partial_path, sha256_of
from hirescli.output.texts import DIGITAL_SOURCE_TYPE
from hirescli.planning.formats import parts
from hirescli.planning.output_cost import output_bytes
from hirescli.recipe import Recipe

WIDTH_PX, HEIGHT_PX = 712, 504  # no multiples of a tile, on purpose
PROMPT = 'ein Dünenmeer ☃ 砂漠, <b> & "so"'


class OutputContract:
    """Attributes say a format; the tests are the same for all.

    Attributes:
        name: Of the output.
        choices: Of the recipe.
        readers: Each gives the whole picture.
        levels: Gives all levels of a pyramid, the largest first; None: there is none.
        least_psnr: In dB, against the spool; infinite: every sample is equal.
        sizes: Of the levels.
    """

    name: ClassVar[str]
    choices: ClassVar[dict[str, Any]]
    readers: ClassVar[tuple[Callable[[Path], Pixels], ...]]
    levels: ClassVar[Callable[[Path], list[Pixels]] | None] = None
    least_psnr: ClassVar[float] = float("inf")
    sizes: ClassVar[list[tuple[int, int]]] = [(504, 712), (252, 356), (126, 178), (63, 89)]

    @property
    def pixels(self) -> Pixels:
        make = deep_picture if self.choices.get("bits") == 16 else picture
        return make(WIDTH_PX, HEIGHT_PX)

    def recipe(self, **more: Any) -> Recipe:
        return recipe(WIDTH_PX, HEIGHT_PX, **({"prompt": PROMPT} | self.choices | more))

    def made(self, folder: Path, **more: Any) -> FinishedFile:
        spool = folder / "spool.tif"
        if not spool.exists():
            write_spool(spool, self.pixels)
        return finalise(spool, folder / self.name, recipe=self.recipe(**more), overwrite=True)

    @staticmethod
    def files(output: Path) -> list[Path]:
        """All files of an output, sorted."""
        found = [f for part in parts(output) for f in (part, *part.rglob("*")) if f.is_file()]
        return sorted(found, key=lambda file: file.relative_to(output.parent).as_posix())

    def test_independent_readers_see_the_spool(self, tmp_path: Path) -> None:
        path, wanted = self.made(tmp_path).path, self.pixels
        for read in self.readers:
            seen = read(path)
            assert seen.shape == wanted.shape
            assert seen.dtype == wanted.dtype
            if self.least_psnr == float("inf"):
                assert np.array_equal(seen, wanted)
            else:
                assert psnr(seen, wanted) >= self.least_psnr
                # No colour is shifted.
                assert np.abs(seen.mean((0, 1)) - wanted.mean((0, 1))).max() < 0.4

    def test_levels_halve(self, tmp_path: Path) -> None:
        output = self.made(tmp_path).path
        if self.levels is None:
            assert inspect(output).levels == 1
            return
        levels = type(self).levels(output)
        assert [level.shape[:2] for level in levels] == self.sizes
        assert inspect(output).levels == len(self.sizes)
        means = self.pixels.reshape(252, 2, 356, 2, 3).mean(axis=(1, 3))
        limit = 1 if self.least_psnr == float("inf") else 12
        assert np.abs(levels[1] - means).max() <= limit

    def test_the_recipe_comes_back(self, tmp_path: Path) -> None:
        output, wanted = self.made(tmp_path, seed=2**63 - 1).path, self.recipe(seed=2**63 - 1)
        assert Recipe.from_fragments(read_recipe(output)) == wanted
        facts = inspect(output)
        assert (facts.width_px, facts.height_px) == (WIDTH_PX, HEIGHT_PX)
        assert facts.bytes == sum(file.stat().st_size for file in self.files(output))
        said = b"".join(file.read_bytes() for file in self.files(output))
        assert DIGITAL_SOURCE_TYPE.encode() in said

    def test_no_metadata_leaves_no_trace(self, tmp_path: Path) -> None:
        output = self.made(tmp_path, metadata=False, prompt="secretword").path
        data = b"".join(file.read_bytes() for file in self.files(output))
        for trace in (b"secretword", "secretword".encode("utf-16-be"), b"DigitalSource", b"hires"):
            assert trace not in data
        facts = inspect(output)
        assert (facts.recipe, facts.parameters) == (None, None)
        with pytest.raises(RequestError, match="holds no recipe"):
            read_recipe(output)

    def test_the_same_bytes_at_any_number_of_threads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.made(tmp_path)
        data = [file.read_bytes() for file in self.files(first.path)]
        monkeypatch.setattr(os, "cpu_count", lambda: 1)
        second = self.made(tmp_path)  # replaces the first
        assert [file.read_bytes() for file in self.files(second.path)] == data
        assert second.sha256 == first.sha256 == sha256_of(first.path)
        assert second.bytes == sum(map(len, data))
        assert {path.name for path in tmp_path.iterdir()} == {
            "spool.tif", *(part.name for part in parts(first.path))
        }  # fmt: skip

    def test_it_takes_no_more_disk_than_planned(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(1).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
        if self.choices.get("bits") == 16:
            noise = noise.astype(np.uint16) * 257 + noise[::-1]
        write_spool(tmp_path / "spool.tif", noise)
        # Tiles at the edges are padded; a few hundred bytes for every tile, level and text.
        padded = self.recipe().model_copy(update={"width_px": 768, "height_px": 512})
        assert self.made(tmp_path).bytes <= output_bytes(padded) * 1.05 + 20_000

    @pytest.mark.parametrize("share", [0, 0.1, 0.6])
    def test_a_disk_that_fills_up_leaves_no_half_output(
        self, tmp_path: Path, small_disk: Path, share: float
    ) -> None:
        done = self.made(tmp_path)
        free_bytes = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        (small_disk / "filler").write_bytes(bytes(free_bytes - int(share * done.bytes)))
        heard: list[Any] = []
        with pytest.raises(RunError, match=r"disk full.*free.*same command again"):
            finalise(
                tmp_path / "spool.tif",
                small_disk / self.name,
                recipe=self.recipe(),
                listener=heard.append,
            )
        assert [path.name for path in small_disk.iterdir()] == ["filler"]
        assert [type(event) for event in heard] == [Finalising]
        (small_disk / "filler").unlink()
        output = finalise(
            tmp_path / "spool.tif",
            small_disk / self.name,
            recipe=self.recipe(),
            listener=heard.append,
        )
        assert output.bytes == done.bytes
        assert [type(event) for event in heard[1:]] == [Finalising, FileWritten]

    def test_without_leave_nothing_is_replaced(self, tmp_path: Path) -> None:
        self.made(tmp_path)
        before = {file: file.read_bytes() for file in self.files(tmp_path / self.name)}
        with pytest.raises(RunError, match="appeared during the run and is not replaced"):
            finalise(tmp_path / "spool.tif", tmp_path / self.name, recipe=self.recipe(seed=5))
        assert {file: file.read_bytes() for file in self.files(tmp_path / self.name)} == before
        assert not partial_path(tmp_path / self.name).exists()


class _Tiff(OutputContract):
    name = "out.tif"
    choices: ClassVar[dict[str, Any]] = {"tile_px": 128}
    readers = (by_tifffile, by_vips, by_pillow, by_openslide)
    levels = tiff_levels


class TestTiff(_Tiff):
    pass


class TestTiffLzw(_Tiff):
    choices: ClassVar[dict[str, Any]] = {"tile_px": 128, "compression": "lzw"}


class TestTiffPlain(_Tiff):
    choices: ClassVar[dict[str, Any]] = {"tile_px": 128, "compression": "none"}


class TestTiffJpeg(_Tiff):
    choices: ClassVar[dict[str, Any]] = {"tile_px": 128, "compression": "jpeg"}
    least_psnr = 39


class TestTiffZstd(_Tiff):
    choices: ClassVar[dict[str, Any]] = {"tile_px": 128, "compression": "zstd"}
    readers = (by_tifffile,)  # libvips and Pillow of the wheels have no zstd in TIFF


class TestTiffZstdSubIfd(TestTiffZstd):
    choices: ClassVar[dict[str, Any]] = {
        "tile_px": 128, "compression": "zstd", "pyramid": "subifd", "bits": 16,
    }  # fmt: skip


class TestTiffSubIfd(_Tiff):
    choices: ClassVar[dict[str, Any]] = {"tile_px": 128, "pyramid": "subifd"}
    readers = (by_tifffile, by_vips, by_pillow)


class TestTiffFlat(_Tiff):
    choices: ClassVar[dict[str, Any]] = {"tile_px": 128, "pyramid": "none"}
    levels = None


class TestTiff16(_Tiff):
    choices: ClassVar[dict[str, Any]] = {"tile_px": 128, "bits": 16}
    readers = (by_tifffile, by_vips)


class TestPrint(OutputContract):
    name = "out.print.tif"
    choices: ClassVar[dict[str, Any]] = {"format": "print"}
    readers = (by_tifffile, by_vips, by_pillow)


class TestPng(OutputContract):
    name = "out.png"
    choices: ClassVar[dict[str, Any]] = {"format": "png"}
    readers = (by_pillow, by_imagecodecs)


class TestPng16(TestPng):
    choices: ClassVar[dict[str, Any]] = {"format": "png", "bits": 16}
    readers = (by_imagecodecs,)


class TestJpeg(OutputContract):
    name = "out.jpg"
    choices: ClassVar[dict[str, Any]] = {"format": "jpeg"}
    readers = (by_pillow, by_imagecodecs)
    least_psnr = 39


class TestWebp(OutputContract):
    name = "out.webp"
    choices: ClassVar[dict[str, Any]] = {"format": "webp"}
    readers = (by_pillow, by_imagecodecs)
    least_psnr = 38


class TestAvif(OutputContract):
    name = "out.avif"
    choices: ClassVar[dict[str, Any]] = {"format": "avif"}
    readers = (by_pillow, by_imagecodecs)
    least_psnr = 38


class TestDeepZoom(OutputContract):
    name = "out.dzi"
    choices: ClassVar[dict[str, Any]] = {"format": "tiles", "tile_px": 128, "tile_format": "png"}
    readers = (first_of(deep_zoom_levels),)
    levels = deep_zoom_levels
    sizes: ClassVar[list[tuple[int, int]]] = [
        (-(-504 // 2**n), -(-712 // 2**n)) for n in range(11)
    ]


class TestDeepZoom16(TestDeepZoom):
    choices: ClassVar[dict[str, Any]] = TestDeepZoom.choices | {"bits": 16}


class TestDeepZoomJpeg(TestDeepZoom):
    choices: ClassVar[dict[str, Any]] = {"format": "tiles", "tile_px": 128}
    least_psnr = 39


class TestZoomify(OutputContract):
    name = "out.zoomify"
    choices: ClassVar[dict[str, Any]] = {
        "format": "tiles", "tile_px": 128, "tile_format": "png", "tile_layout": "zoomify",
    }  # fmt: skip
    readers = (first_of(zoomify_levels),)
    levels = zoomify_levels


class TestIiif(OutputContract):
    name = "out.iiif"
    choices: ClassVar[dict[str, Any]] = {
        "format": "tiles", "tile_px": 128, "tile_format": "png", "tile_layout": "iiif3",
    }  # fmt: skip
    readers = (first_of(iiif_levels),)
    levels = iiif_levels


@pytest.mark.parametrize("tile_format", ["jpeg", "png"])
@pytest.mark.parametrize("size", [(64, 64), (50, 40), (65, 64), (128, 128), (64, 200), (519, 333)])
def test_iiif_viewers_find_every_tile(
    tmp_path: Path, size: tuple[int, int], tile_format: str
) -> None:
    pixels = picture(*size)
    spool = write_spool(tmp_path / "spool.tif", pixels)
    choices = {"format": "tiles", "tile_layout": "iiif3", "tile_px": 64}
    made = recipe(512, 512, tile_format=tile_format, **choices)
    finalise(spool, tmp_path / "out.iiif", recipe=made)
    first = iiif_levels(tmp_path / "out.iiif")[0]
    assert first.shape == pixels.shape
    assert psnr(first, pixels) > (100 if tile_format == "png" else 35)
    facts = inspect(tmp_path / "out.iiif")
    assert (facts.width_px, facts.height_px) == size


# --- what only some formats have ------------------------------------------------------------

SINGLE_FILES = [TestTiff, TestTiffZstd, TestPrint, TestPng, TestJpeg, TestWebp, TestAvif]


@pytest.mark.parametrize("kind", SINGLE_FILES)
@pytest.mark.parametrize("metadata", [True, False])
def test_profile_and_resolution_are_always_there(
    tmp_path: Path, kind: type[OutputContract], metadata: bool
) -> None:
    path = kind().made(tmp_path, dpi=254.0, metadata=metadata).path
    with Image.open(path) as image:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        assert "sRGB" in ImageCms.getProfileDescription(profile)
        exif = image.getexif()
        dpi = image.info.get("dpi") or (exif[0x011A], exif[0x011B])
        assert dpi == pytest.approx((254, 254), abs=0.1)


@pytest.mark.parametrize("kind", [TestJpeg, TestWebp, TestAvif])
def test_exif_carries_the_a1111_text(tmp_path: Path, kind: type[OutputContract]) -> None:
    path, text = kind().made(tmp_path).path, parameters_text(kind().recipe())
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + text.encode("utf-16-be")
        assert read_user_comment(image.info["exif"]) == text
    parameters = inspect(path).parameters
    assert parameters is not None
    assert parameters["prompt"] == PROMPT


@pytest.mark.parametrize("kind", [TestWebp, TestAvif, TestJpeg])
def test_a_text_that_exif_cannot_hold_stays_in_the_recipe(
    tmp_path: Path, kind: type[OutputContract]
) -> None:
    prompt = "sand and stone, " * 9000  # 144 kB
    path = kind().made(tmp_path, prompt=prompt).path
    assert read_recipe(path)["prompt"] == prompt.strip()
    assert inspect(path).parameters is None


def test_a_print_file_is_what_shops_ask_for(tmp_path: Path) -> None:
    import tifffile

    path = TestPrint().made(tmp_path, dpi=300.0).path
    with tifffile.TiffFile(path) as tiff:
        (page,) = tiff.pages
        assert not tiff.is_bigtiff
        assert not page.is_tiled
        assert len(page.dataoffsets) > 1
        assert (page.compression.name, page.photometric.name) == ("LZW", "RGB")
        assert (page.samplesperpixel, page.bitspersample, page.extrasamples) == (3, 8, ())
        assert page.resolution == (300.0, 300.0)
        assert page.resolutionunit.name == "INCH"


def test_tiles_say_the_recipe_in_a_file_among_them(tmp_path: Path) -> None:
    TestDeepZoom().made(tmp_path)
    said = json.loads((tmp_path / "out_files" / "hires.json").read_text())
    assert said["hires_recipe"]["prompt"] == PROMPT
    assert said["parameters"] == parameters_text(TestDeepZoom().recipe())
    assert said["digital_source_type"] == DIGITAL_SOURCE_TYPE
    assert not list(tmp_path.rglob("vips-properties.xml"))  # has the date in it


@pytest.mark.parametrize("kind", [TestDeepZoom, TestZoomify, TestIiif])
def test_the_hash_of_tiles_is_that_of_sha256sum(
    tmp_path: Path, kind: type[OutputContract]
) -> None:
    done = kind().made(tmp_path)
    names = " ".join(part.name for part in parts(done.path))
    listing = f"find {names} -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    out = subprocess.run(
        listing, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert out.split()[0] == done.sha256


@pytest.mark.parametrize(
    ("kind", "tile"),
    [
        (TestDeepZoom, "out_files/10/0_0.png"),
        (TestZoomify, "out.zoomify/TileGroup0/3-0-0.png"),
        (TestIiif, "out.iiif/0,0,128,128"),
    ],
)
def test_tiles_that_are_missing_are_named(
    tmp_path: Path, kind: type[OutputContract], tile: str
) -> None:
    output = kind().made(tmp_path).path
    (tmp_path / tile).rename(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match=r"is incomplete: 23 of the 24 tiles"):
        inspect(output)


@pytest.mark.parametrize("kind", [TestWebp, TestAvif])
@pytest.mark.parametrize("kept", [3, 20, 700, -100, -1])
def test_truncated_files_are_named(tmp_path: Path, kind: type[OutputContract], kept: int) -> None:
    path = kind().made(tmp_path).path
    os.truncate(path, kept if kept > 0 else path.stat().st_size + kept)
    with pytest.raises(RequestError, match=path.name):
        read_recipe(path)


@pytest.mark.parametrize("kind", [TestJpeg, TestWebp, TestAvif, TestPrint, TestDeepZoomJpeg])
def test_8_bits_of_a_spool_of_16_are_rounded(tmp_path: Path, kind: type[OutputContract]) -> None:
    deep = deep_picture(WIDTH_PX, HEIGHT_PX)
    write_spool(tmp_path / "deep.tif", deep)
    rounded = np.rint(deep / 257).astype(np.uint8)
    write_spool(tmp_path / "spool.tif", rounded)
    done = kind().made(tmp_path)
    again = finalise(tmp_path / "deep.tif", done.path, recipe=kind().recipe(), overwrite=True)
    assert again.sha256 == done.sha256


def test_several_files_come_together(tmp_path: Path) -> None:
    spool = write_spool(tmp_path / "spool.tif", picture(WIDTH_PX, HEIGHT_PX))
    kinds = [TestPng(), TestDeepZoom(), TestWebp()]
    also = {tmp_path / kind.name: kind.recipe() for kind in kinds}
    heard: list[Any] = []
    finalise(
        spool, tmp_path / "out.tif", recipe=TestTiff().recipe(), also=also, listener=heard.append
    )
    written = [event.path.name for event in heard if isinstance(event, FileWritten)]
    assert written == ["out.png", "out.dzi", "out.webp", "out.tif"]  # the output is the last
    first_written = next(i for i, event in enumerate(heard) if isinstance(event, FileWritten))
    assert all(isinstance(event, Finalising) for event in heard[:first_written])
    for path, own in also.items():
        assert Recipe.from_fragments(read_recipe(path)) == own


def test_where_one_of_several_fails_none_is_named(tmp_path: Path, small_disk: Path) -> None:
    spool = write_spool(tmp_path / "spool.tif", picture(WIDTH_PX, HEIGHT_PX))
    (small_disk / "filler").write_bytes(bytes(8 * 2**20 - 300 * 2**10))
    also = {tmp_path / "out.jpg": TestJpeg().recipe()}
    with pytest.raises(RunError, match="disk full"):
        finalise(spool, small_disk / "out.tif", recipe=TestTiff().recipe(), also=also)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["spool.tif"]


CHILD = """
    import sys
    from pathlib import Path
    from hirescli.output.finalise import finalise
    from hirescli.planning.machine import peak_rss_bytes
    from hirescli.recipe import Recipe
    folder, name = Path(sys.argv[1]), sys.argv[2]
    import pyvips, tifffile
    recipe = Recipe.from_fragments({"prompt": "x", "size": 8192}, eval(sys.argv[3]))
    finalise(folder / "spool.tif", folder / name, recipe=recipe)
    print(peak_rss_bytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [TestTiff, TestTiffZstd, TestPng, TestJpeg, TestPrint, TestDeepZoom]
)
def test_memory_is_bounded(tmp_path: Path, kind: type[OutputContract]) -> None:
    row = np.random.default_rng(2).integers(0, 256, (1, 8192, 3), dtype=np.uint8)
    write_spool(tmp_path / "spool.tif", np.broadcast_to(row, (8192, 8192, 3)))
    choices = {key: value for key, value in kind.choices.items() if key != "tile_px"}
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(CHILD),
        str(tmp_path),
        kind.name,
        str(choices),
    ]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    # 201 MB of pixels; with all imports it stays well below.
    assert int(child.stdout.split()[-1]) < 185e6
