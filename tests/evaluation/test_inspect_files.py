"""Whole inspections: kinds of files, bands, bases, what is refused, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from hirescli.errors import RequestError
from hirescli.evaluation.inspection.base import base_of
from hirescli.evaluation.inspection.calibration import tiled
from hirescli.evaluation.inspection.inspecting import inspect
from hirescli.evaluation.inspection.rows import open_picture
from hirescli.evaluation.inspection.verdicts import Verdict, findings, overall, to_dict
from hirescli.output.spool import Spool
from hirescli.output.zstd_tiff import save_zstd_tiff
from tests.conftest import ROOT
from tests.evaluation.inspected import rendered


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.ascontiguousarray(rendered("islands", 320)[:256])


def save(picture: NDArray[Any], path: Path) -> Path:
    """A file of the kind that its name says."""
    kind = path.stem
    if kind == "zstd":
        save_zstd_tiff(lambda plain: _save_pyramid(picture, plain, compression=None), path)
    elif kind == "pyramid":
        _save_pyramid(picture, path, compression="deflate")
    elif kind == "subifds":
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(picture, subifds=1, photometric="rgb", tile=(64, 64))
            tiff.write(np.ascontiguousarray(picture[::2, ::2]), subfiletype=1, photometric="rgb")
    elif kind == "deep":
        tifffile.imwrite(path, picture.astype(np.uint16) * 257, photometric="rgb")
    elif kind == "spool":
        height, width = picture.shape[:2]
        with Spool.create(path, width_px=width, height_px=height, bits=16) as spool:
            spool.write_rows(0, picture.astype(np.uint16) * 257)
    elif kind == "alpha":
        full = np.full((*picture.shape[:2], 1), 255, np.uint8)
        Image.fromarray(np.concatenate([picture, full], axis=2)).save(path)
    else:
        Image.fromarray(picture).save(path)
    return path


def _save_pyramid(picture: NDArray[Any], path: Path, *, compression: str | None) -> None:
    options: Any = {"tile": (64, 64), "photometric": "rgb", "compression": compression}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(picture, **options)
        tiff.write(np.ascontiguousarray(picture[::2, ::2]), subfiletype=1, **options)


def read(path: Path) -> NDArray[Any]:
    return np.concatenate(list(open_picture(path).bands()))


@pytest.mark.parametrize(
    "name", ["plain.png", "alpha.png", "plain.tif", "pyramid.tif", "subifds.tif", "deep.tif",
             "spool.tif", "zstd.tif"],
)  # fmt: skip
def test_rows_are_the_pixels(tmp_path: Path, picture: NDArray[np.uint8], name: str) -> None:
    rows = read(save(picture, tmp_path / name))
    deep = name in ("deep.tif", "spool.tif")
    np.testing.assert_array_equal(rows, picture.astype(np.uint16) * 257 if deep else picture)


def test_damage_in_zstd_is_named(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = save(picture, tmp_path / "zstd.tif")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        place = page.dataoffsets[5] + page.databytecounts[5] // 2
    held = bytearray(path.read_bytes())
    held[place] ^= 1
    path.write_bytes(held)
    with pytest.raises(RequestError, match=r"zstd\.tif is damaged"):
        read(path)


@pytest.mark.parametrize("name", ["a.dzi", "a.zoomify", "a.iiif"])
def test_tiles_for_browsers_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".dzi"):
        path.write_text("<Image/>")
    else:
        path.mkdir()
    with pytest.raises(RequestError, match="tiles for browsers; inspect the TIFF"):
        open_picture(path)


def test_jpeg_and_grey(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = save(picture, tmp_path / "plain.jpg")
    difference = read(path).astype(int) - np.asarray(Image.open(path))
    assert np.abs(difference).max() <= 3  # two decoders of chroma
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        read(tmp_path / "grey.png"), np.repeat(picture[..., :1], 3, axis=2)
    )


def test_tiles_are_seen(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    assert open_picture(save(picture, tmp_path / "pyramid.tif")).tile_px == (64, 64)
    assert open_picture(save(picture, tmp_path / "plain.tif")).tile_px == ()


def test_the_kind_of_file_changes_nothing(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    plain, _ = inspect(save(picture, tmp_path / "plain.png"))
    for name in ("pyramid.tif", "spool.tif", "zstd.tif"):
        other, _ = inspect(save(picture, tmp_path / name))
        same = replace(other, path=plain.path, format=plain.format, bits=plain.bits)
        assert_close(to_dict(same), to_dict(plain))


@pytest.mark.parametrize("rows", [1, 50, 256])
def test_bands_change_nothing(tmp_path: Path, picture: NDArray[np.uint8], rows: int) -> None:
    path = save(picture, tmp_path / "plain.png")
    Image.fromarray(picture).resize((80, 64)).save(tmp_path / "base.png")
    found = [to_dict(inspect(path, base=tmp_path / "base.png", rows=n)[0]) for n in (64, rows)]
    assert_close(*found)


def assert_close(one: Any, other: Any) -> None:
    """Equal but for rounding."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_close(one[key], other[key])
    elif isinstance(one, list | tuple):
        for left, right in zip(one, other, strict=True):
            assert_close(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    else:
        assert one == other


def test_a_fine_and_a_bad_picture(tmp_path: Path) -> None:
    good = rendered("dunes", 512)
    bad = tiled(good, period=96, offset=(5, 9), jump=4).astype(float)
    bad[:, :, 0] *= 1.15
    bad = np.clip(bad, 0, 255).astype(np.uint8)
    blurred = Image.fromarray(bad).resize((170, 170)).resize((512, 512), Image.Resampling.BICUBIC)
    Image.fromarray(good).resize((128, 128)).save(tmp_path / "base.png")
    Image.fromarray(good).save(tmp_path / "good.png")
    Image.fromarray(bad).save(tmp_path / "bad.png")
    blurred.save(tmp_path / "blurred.png")
    verdicts = {
        name: {
            line.measure: line.verdict
            for line in findings(inspect(tmp_path / f"{name}.png", base=tmp_path / "base.png")[0])
        }
        for name in ("good", "bad", "blurred")
    }
    assert set(verdicts["good"].values()) == {"fine"}
    assert (verdicts["bad"]["seams"], verdicts["bad"]["colour drift"]) == ("bad", "bad")
    assert verdicts["bad"]["sharpness"] == "fine"
    assert verdicts["blurred"]["sharpness"] in ("look", "bad")


def test_nearest_neighbour_is_said(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    large = Image.fromarray(picture).resize((960, 768), Image.Resampling.NEAREST)
    large.save(tmp_path / "a.png")
    found, _ = inspect(tmp_path / "a.png")
    said = findings(found)[-1]
    assert (found.repeats, found.effective_scale, said.verdict) == (3, 1 / 3, "bad")
    assert "3x3 times (nearest neighbour)" in said.means
    assert "320x256 px" in said.means


def test_the_worst_verdict_counts(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    found, _ = inspect(save(picture, tmp_path / "plain.png"))
    lines = findings(found)
    order: tuple[Verdict, ...] = ("unknown", "fine", "look", "bad")
    for verdict in order:
        expected = max(verdict, overall(lines), key=order.index)
        assert overall([*lines, replace(lines[0], verdict=verdict)]) == expected


# Bases


def test_the_base_is_looked_for(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = save(picture, tmp_path / "plain.png")
    assert base_of(path) is None
    found, _ = inspect(path)
    assert (found.base, found.drift) == (None, None)
    run = tmp_path / "plain.png.run"
    run.mkdir()
    small = np.asarray(Image.fromarray(picture).resize((80, 64)))
    save(small, tmp_path / "spool.tif").rename(run / "stage-0.spool.tif")
    assert base_of(path) == run / "stage-0.spool.tif"
    preview = tmp_path / "plain.png.stage-0.jpg"
    Image.fromarray(small).save(preview, quality=95, subsampling=0)
    found, _ = inspect(path)
    assert found.base == preview
    assert found.drift is not None
    assert found.drift.shift_delta_e < 2


def test_a_whole_cast_and_a_local_one_are_told(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    Image.fromarray(picture).resize((80, 64)).save(tmp_path / "base.png")
    quarter, whole = picture.astype(int), picture.astype(int)
    quarter[:128, :160] += 25
    whole[:, :, 0] += 5
    said = {}
    for name, each in (("plain", picture), ("quarter", quarter), ("whole", whole)):
        Image.fromarray(np.clip(each, 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
        said[name] = findings(inspect(tmp_path / "a.png", base=tmp_path / "base.png")[0])[2]
    assert [line.verdict for line in said.values()] == ["fine", "bad", "fine"]
    assert said["plain"].means.startswith("Colours are close to those of the base stage.")
    assert "quarter" in said["quarter"].value


def test_one_more_digit_near_a_limit(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = save(picture, tmp_path / "plain.png")
    found, _ = inspect(path, base=path)
    for shift, shown, verdict in (
        (2.0, "dE 2.0,", "fine"), (2.49, "dE 2.49,", "fine"), (2.5, "dE 2.50,", "look"),
    ):  # fmt: skip
        assert found.drift is not None
        line = findings(replace(found, drift=replace(found.drift, shift_delta_e=shift)))[2]
        assert line.value.startswith(shown)
        assert line.verdict == verdict


def test_a_base_of_another_shape_is_refused(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = save(picture, tmp_path / "plain.png")
    Image.fromarray(picture[:100]).save(tmp_path / "base.png")
    with pytest.raises(RequestError, match=r"320x100.*320x256.*--base"):
        inspect(path, base=tmp_path / "base.png")


# Sizes


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (63, 65), (17, 900), (900, 17), (161, 70)])
def test_tiny_pictures_say_what_needs_more(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(rendered("stone", 900)[: size[1], : size[0]]).save(tmp_path / "a.png")
    found, traces = inspect(tmp_path / "a.png")
    text = json.dumps(to_dict(found), allow_nan=False)
    assert json.loads(text)["width_px"] == size[0]
    said = {line.measure: line for line in findings(found)}
    if min(size) < 64:
        assert "64 px" in said["sharpness"].means
    if max(size) < 160:
        assert "160 px" in said["seams"].means
    assert min(traces.small.shape[:2]) >= 1


def test_fifteen_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (15, 400)).save(tmp_path / "a.png")
    with pytest.raises(RequestError, match=r"15x400.*16 px"):
        inspect(tmp_path / "a.png")


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (9, 200, 90)])
def test_flat_pictures_have_numbers(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    Image.new("RGB", (400, 300), colour).save(tmp_path / "a.png")
    found, _ = inspect(tmp_path / "a.png", base=tmp_path / "a.png")
    facts = json.loads(json.dumps(to_dict(found), allow_nan=False))
    assert facts["drift"]["max_delta_e"] == 0
    assert overall(findings(found)) == "fine"
    assert facts["effective_scale"] is None


# Memory

_PEAK = """
import sys
from pathlib import Path
from hirescli.evaluation.charts import check_target
from hirescli.evaluation.inspection.figure import draw
from hirescli.evaluation.inspection.calibration import tiled
from hirescli.evaluation.inspection.inspecting import inspect
from hirescli.planning.machine import peak_rss_bytes
found = inspect(Path(sys.argv[1]))
draw(Path(sys.argv[2]), *found)
print(peak_rss_bytes())
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """6144x6144 px take 113 MB as they are, and 453 MB as floats of three channels."""
    import pyvips

    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    image = pyvips.Image.new_from_array(noise).replicate(12, 12).copy(interpretation="srgb")
    path = tmp_path / "large.tif"
    image.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, pyramid=True)
    ran = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), str(tmp_path / "a.png")],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert int(ran.stdout) < 380e6
