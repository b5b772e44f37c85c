from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from pictures import picture, recipe, write_spool

from hirescli.errors import RunError
from hirescli.output.finalise import FinishedFile, finalise
from hirescli.output.places import partial_path
from hirescli.output.spool import Spool

WIDTH_PX, HEIGHT_PX = 712, 504  # no multiples of a tile, on purpose
NAMES = {"tiff": "out.tif", "png": "out.png", "jpeg": "out.jpg"}


def finish(folder: Path, **choices: Any) -> FinishedFile:
    spool = folder / "spool.tif"
    if not spool.exists():
        write_spool(spool, picture(WIDTH_PX, HEIGHT_PX))
    wanted = recipe(WIDTH_PX, HEIGHT_PX, tile_px=128, **choices)
    return finalise(spool, folder / NAMES[wanted.format], recipe=wanted, overwrite=True)


def test_the_pyramid_halves_as_pages_down_to_one_tile(tmp_path: Path) -> None:
    path = finish(tmp_path).path
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        shapes = [page.shape for page in tiff.pages]
        assert all(page.is_tiled and page.tile == (128, 128) for page in tiff.pages)
        assert [int(page.subfiletype) & 1 for page in tiff.pages] == [0, 1, 1, 1]
        assert not any(page.subifds for page in tiff.pages)
        halves = [page.asarray() for page in tiff.pages]
    assert shapes == [(504, 712, 3), (252, 356, 3), (126, 178, 3), (63, 89, 3)]
    means = picture(WIDTH_PX, HEIGHT_PX).reshape(252, 2, 356, 2, 3).mean(axis=(1, 3))
    assert np.abs(halves[1] - means).max() <= 1


def test_pictures_much_smaller_than_a_tile_are_read_by_all(tmp_path: Path) -> None:
    write_spool(tmp_path / "spool.tif", picture(100, 72))
    path = tmp_path / "small.tif"
    finalise(tmp_path / "spool.tif", path, recipe=recipe(100, 72), overwrite=False)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.tile == (112, 112)
    assert np.array_equal(pyvips.Image.new_from_file(str(path)).numpy(), picture(100, 72))


@pytest.mark.parametrize("compression", ["deflate", "lzw", "jpeg", "none"])
def test_openslide_sees_every_level(tmp_path: Path, compression: str) -> None:
    openslide = pytest.importorskip("openslide")
    path = finish(tmp_path, compression=compression).path
    with openslide.OpenSlide(str(path)) as slide:
        assert slide.level_dimensions == ((712, 504), (356, 252), (178, 126), (89, 63))
        region = np.asarray(slide.read_region((100, 40), 0, (300, 200)))[..., :3]
    expected = picture(WIDTH_PX, HEIGHT_PX)[40:240, 100:400]
    assert np.abs(region.astype(int) - expected).mean() < 3


def test_an_older_output_survives_a_failure(tmp_path: Path, small_disk: Path) -> None:
    finish(tmp_path)
    output = small_disk / "out.tif"
    output.write_text("older")
    (small_disk / "filler").write_bytes(bytes(8 * 2**20 - 2**16))
    with pytest.raises(RunError, match="disk full"):
        finalise(tmp_path / "spool.tif", output, recipe=recipe(WIDTH_PX, HEIGHT_PX))
    assert output.read_text() == "older"


def test_full_disk_under_the_temporary_levels_is_named(tmp_path: Path, small_disk: Path) -> None:
    spool = write_spool(small_disk / "spool.tif", picture(WIDTH_PX, HEIGHT_PX))
    free_bytes = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filler").write_bytes(bytes(free_bytes - 2**16))
    # All levels go to temporary files, as in pictures above 100 MB.
    environment = os.environ | {"VIPS_DISC_THRESHOLD": "1k"}
    script = f"""
        from pathlib import Path
        from hirescli.output.finalise import finalise
        from hirescli.recipe import Recipe
        wanted = Recipe(prompt="x", width_px={WIDTH_PX}, height_px={HEIGHT_PX}, tile_px=128)
        finalise(Path({str(spool)!r}), Path({str(tmp_path / "out.tif")!r}), recipe=wanted)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"RunError: disk full: {small_disk}" in child.stderr
    assert not (tmp_path / "out.tif").exists()
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "spool.tif"]


def test_the_environment_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/somewhere")
    finish(tmp_path)
    assert os.environ["TMPDIR"] == "/somewhere"


CHILD = """
    import sys
    from pathlib import Path
    from hirescli.output.finalise import finalise
    from hirescli.planning.machine import peak_rss_bytes
    from hirescli.recipe import Recipe
    side_px, folder = int(sys.argv[1]), Path(sys.argv[2])
    import pyvips, tifffile
    print("ready", flush=True)
    recipe = Recipe(prompt="x", size=side_px, format=sys.argv[3])
    finalise(folder / "spool.tif", folder / "out", recipe=recipe)
    print(peak_rss_bytes())
"""


def start(folder: Path, side_px: int, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(side_px), str(folder), kind]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("kind", ["tiff", "png"])
def test_an_interrupt_is_answered_at_once(tmp_path: Path, kind: str) -> None:
    rows = np.random.default_rng(2).integers(0, 256, (1, 8192, 3), dtype=np.uint8)
    write_spool(tmp_path / "spool.tif", np.broadcast_to(rows, (8192, 8192, 3)))
    child = start(tmp_path, 8192, kind)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    partial = partial_path(tmp_path / "out")
    while not partial.exists():
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert child.returncode != 0
    assert [path.name for path in tmp_path.iterdir()] == ["spool.tif"]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool.tif"
    with Spool.create(path, width_px=64, height_px=64) as made:
        made.write_rows(0, np.full((64, 64, 3), 99, dtype=np.uint8))
    return path


def no_links(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_an_output_that_appeared_is_not_replaced(
    tmp_path: Path, spool: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:  # as on file systems without them
        monkeypatch.setattr(os, "link", no_links)
    output, wanted = tmp_path / "out.png", recipe(64, 64, format="png")
    output.write_text("of somebody else")
    with pytest.raises(RunError, match=r"out\.png appeared during the run.*--overwrite"):
        finalise(spool, output, recipe=wanted)
    assert output.read_text() == "of somebody else"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "spool.tif"]
    replaced = finalise(spool, output, recipe=wanted, overwrite=True)
    output.unlink()
    assert finalise(spool, output, recipe=wanted).sha256 == replaced.sha256
    assert output.stat().st_nlink == 1
    assert output.stat().st_size == replaced.bytes


def test_a_link_to_nothing_in_the_place_of_the_output(tmp_path: Path, spool: Path) -> None:
    output = tmp_path / "out.png"
    output.symlink_to(tmp_path / "nowhere")
    finalise(spool, output, recipe=recipe(64, 64, format="png"))
    assert output.is_file()
