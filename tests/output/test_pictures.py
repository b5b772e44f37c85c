"""Pictures that users give, in every kind of file, against what other programs read."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from numpy.typing import NDArray
from pictures import picture
from PIL import Image, ImageCms, ImageOps

from hirescli.output import pyramid, turning
from hirescli.output.pictures import look, shrunk_spool, to_spool
from hirescli.output.resize import Resized
from hirescli.output.spool import Spool

PIXELS = picture(150, 110)
GREY = PIXELS[..., 0]
GREY_ROWS = GREY[..., None]
ALPHA = np.broadcast_to(np.linspace(0, 255, 150).astype("u1"), GREY.shape)
RGBA = np.dstack([PIXELS, ALPHA])
Write = Callable[[Path], object]


def spooled(path: Path) -> NDArray[np.float64]:
    """What `to_spool` makes of a file, in levels of 8 bits."""
    spool_path = path.with_name("spool")
    facts = to_spool(path, spool_path)
    with Spool.open(spool_path) as spool:
        assert spool.bits == 16
        assert (spool.width_px, spool.height_px) == (facts.width_px, facts.height_px)
        rows = spool.read_rows(0, spool.height_px)
    assert {each.name for each in path.parent.iterdir()} == {path.name, "spool"}
    return rows.astype(np.float64) / 257


def pillow(pixels: NDArray[Any], mode: str | None = None, **options: Any) -> Write:
    image = Image.fromarray(pixels)
    return lambda path: (image.convert(mode) if mode else image).save(path, **options)


def tiff(pixels: NDArray[Any], **options: Any) -> Write:
    options = {"photometric": "rgb", **options}
    return lambda path: tifffile.imwrite(path, pixels, **options)


def on_white(pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float64]:
    opaque = alpha[..., None] / 255.0
    return pixels * opaque + 255.0 * (1 - opaque)


def by_pillow(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.float64)


LEVELS_16 = PIXELS.astype("u2") * 257 - np.arange(150, dtype="u2")[:, None]

FINE: dict[str, Any] = {"quality": 95, "subsampling": 0}

# File, what writes it, what is to come out (None: what Pillow reads), levels of 8 bits allowed.
EXACT = 1e-9
READABLE: dict[str, tuple[str, Write, Any, float]] = {
    "rgb": ("a.png", pillow(PIXELS), PIXELS, EXACT),
    "grey": ("a.png", pillow(GREY), GREY_ROWS, EXACT),
    "one-bit": ("a.png", pillow(PIXELS, "1"), None, EXACT),
    "palette": ("a.png", pillow(PIXELS, "P"), None, EXACT),
    "grey-16": ("a.png", pillow(LEVELS_16[..., 0]), LEVELS_16[..., :1] / 257, EXACT),
    "alpha": ("a.png", pillow(RGBA), on_white(PIXELS, ALPHA), 0.01),
    "grey-alpha": (
        "a.png", pillow(np.dstack([GREY, ALPHA])), on_white(GREY_ROWS, ALPHA), 0.01,
    ),
    "jpeg": ("a.jpg", pillow(PIXELS, **FINE), None, 1.01),
    "grey-jpeg": ("a.jpg", pillow(GREY, quality=95), None, 1.01),
    "progressive": ("a.jpg", pillow(PIXELS, **FINE, progressive=True), None, 1.01),
    "webp": ("a.webp", pillow(PIXELS, lossless=True), PIXELS, EXACT),
    "gif": ("a.gif", pillow(PIXELS), None, EXACT),
    "deflate": ("a.tif", tiff(PIXELS, compression="deflate", rowsperstrip=7), PIXELS, EXACT),
    "lzw-tiles": ("a.tif", tiff(PIXELS, compression="lzw", tile=(32, 48)), PIXELS, EXACT),
    "bigtiff": ("a.tif", tiff(PIXELS, bigtiff=True, byteorder=">"), PIXELS, EXACT),
    "planes": ("a.tif", tiff(np.moveaxis(PIXELS, 2, 0), planarconfig="separate"), PIXELS, EXACT),
    "jpeg-in-tiff": ("a.tif", pillow(PIXELS, compression="jpeg", quality=95), None, 2.01),
    "group4": ("a.tif", pillow(PIXELS, "1", compression="group4"), None, EXACT),
    "tiff-16": ("a.tif", tiff(LEVELS_16), LEVELS_16 / 257, EXACT),
    "tiff-16-alpha": (
        "a.tif", tiff(np.dstack([PIXELS, ALPHA]).astype("u2") * 257, extrasamples=["unassalpha"]),
        on_white(PIXELS, ALPHA), 0.01,
    ),
    "premultiplied": (
        "a.tif",
        tiff(np.dstack([PIXELS // 2, np.full_like(GREY, 127)]), extrasamples=["assocalpha"]),
        PIXELS // 2 + 128.0, 1.01,
    ),
    "no-alpha": ("a.tif", tiff(RGBA, extrasamples=["unspecified"]), PIXELS, EXACT),
    "float": ("a.tif", tiff((PIXELS / 255).astype("f4")), PIXELS, 0.01),
    "half-float": ("a.tif", tiff((PIXELS / 255).astype("f2")), PIXELS, 0.2),
    "grey-float": (
        "a.tif", tiff((GREY / 255).astype("f4"), photometric="minisblack"), GREY_ROWS, 0.01,
    ),
    "high-range": (
        "a.tif", tiff((PIXELS / 150 - 0.3).astype("f4")),
        (PIXELS * 1.7 - 76.5).clip(0, 255), 0.01,
    ),
    "float-alpha": (
        "a.tif", tiff((RGBA / 255).astype("f4"), extrasamples=["unassalpha"]),
        on_white(PIXELS, ALPHA), 0.01,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READABLE)
def test_pixels_are_those_that_others_read(case: str, tmp_path: Path) -> None:
    name, write, wanted, allowed = READABLE[case]
    path = tmp_path / name
    write(path)
    made = spooled(path)
    expected = by_pillow(path) if wanted is None else wanted
    assert made.shape == (110, 150, 3)
    assert np.abs(made - expected).max() <= allowed


def profile(name: str) -> bytes:
    return bytes(pyvips.Operation.call("profile_load", name))


def through(image: Image.Image, icc: bytes) -> NDArray[np.float64]:
    """Pillow's own colour management, to sRGB."""
    made = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(icc)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert made is not None
    return np.asarray(made).astype(np.float64)


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_goes_through_its_profile(name: str, embedded: bool, tmp_path: Path) -> None:
    path, icc = tmp_path / name, profile("cmyk")
    options: dict[str, Any] = {"icc_profile": icc} if embedded else {}
    if name == "a.jpg":
        options |= FINE
    Image.fromarray(PIXELS).convert("CMYK").save(path, **options)
    assert look(path).channels == 4
    made = spooled(path)
    with Image.open(path) as image:
        assert np.abs(made - through(image, icc)).max() < 4


def test_an_rgb_profile_is_followed(tmp_path: Path) -> None:
    path, icc = tmp_path / "a.png", profile("p3")
    Image.fromarray(PIXELS).save(path, icc_profile=icc)
    made = spooled(path)
    assert np.abs(made - through(Image.fromarray(PIXELS), icc)).max() < 2
    assert np.abs(made - PIXELS).max() > 8  # the profile matters


def test_a_profile_and_alpha_go_together(tmp_path: Path) -> None:
    path, icc = tmp_path / "a.png", profile("p3")
    Image.fromarray(RGBA).save(path, icc_profile=icc)
    wanted = on_white(through(Image.fromarray(PIXELS), icc), ALPHA)
    assert np.abs(spooled(path) - wanted).max() < 2


@pytest.mark.parametrize("icc", [b"no profile" * 50, profile("cmyk")], ids=["broken", "of-cmyk"])
def test_a_profile_that_does_not_fit_is_ignored(icc: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(PIXELS).save(path, icc_profile=icc)
    assert np.abs(spooled(path) - PIXELS).max() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "allowed"), [("a.png", EXACT), ("a.tif", EXACT), ("a.jpg", 1.01)]
)
def test_pictures_are_turned_upright(
    name: str, allowed: float, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turning, "_BAND_BYTES", 20_000)  # many bands, the last one shorter
    monkeypatch.setattr(turning, "_READ_BYTES", 7_000)
    path, exif = tmp_path / name, Image.Exif()
    exif[274] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif, **FINE)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    facts = look(path)
    assert (facts.height_px, facts.width_px) == upright.shape[:2]
    assert np.abs(spooled(path) - upright).max() <= allowed


def test_the_largest_page_of_a_pyramid_is_read(tmp_path: Path) -> None:
    large = picture(700, 500)
    path = tmp_path / "a.tif"
    image = pyvips.Image.new_from_array(large)
    image.tiffsave(str(path), tile=True, tile_width=64, tile_height=64, pyramid=True, bigtiff=True)
    assert np.abs(spooled(path) - large).max() <= EXACT


@pytest.mark.parametrize("options", [{}, {"compression": "deflate", "tile": (16, 16)}], ids=str)
def test_tags_out_of_order_are_no_damage(options: dict[str, Any], tmp_path: Path) -> None:
    """tifffile writes a description of its own behind another one."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", description="x", **options)
    assert np.array_equal(spooled(path), PIXELS)
    (level,) = pyramid.levels_of(path)
    assert np.array_equal(pyramid.open_level(path, level, access="random").numpy(), PIXELS)


def test_one_large_strip_is_no_damage(tmp_path: Path) -> None:
    """Writers that cut nothing make strips above the 50 MB that libvips takes by itself."""
    large = np.random.default_rng(0).integers(0, 255, (4500, 4000, 3), dtype="u1")
    path = tmp_path / "a.tif"
    options = {"compression": "deflate", "compressionargs": {"level": 1}}
    tiff(large, rowsperstrip=len(large), **options)(path)
    assert path.stat().st_size > 50 * 2**20
    assert np.abs(spooled(path)[::50] - large[::50]).max() <= EXACT


def test_a_thumbnail_before_the_picture_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(PIXELS[::4, ::4], photometric="rgb", subfiletype=1)
        writer.write(PIXELS, photometric="rgb")
    assert np.abs(spooled(path) - PIXELS).max() <= EXACT


def test_facts_need_no_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiff(np.dstack([PIXELS, ALPHA]).astype("u2"), extrasamples=["unassalpha"])(path)
    facts = look(str(path))
    assert (facts.path, facts.format, facts.bits, facts.channels) == (path, "tiff", 16, 4)
    assert (facts.width_px, facts.height_px) == (150, 110)
    assert facts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    pillow(PIXELS, "1")(path.with_suffix(".png"))
    facts = look(path.with_suffix(".png"))
    assert (facts.format, facts.bits, facts.channels) == ("png", 1, 1)


@pytest.mark.parametrize("name", ["a[page=2].png", "-rf.png", "%d.png", "ü n.png", "no-suffix"])
def test_names_are_taken_as_they_are(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(PIXELS).save(path, format="PNG")
    assert np.abs(spooled(path) - PIXELS).max() <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [1, 6])
def test_memory_does_not_grow_with_the_picture(orientation: int, tmp_path: Path) -> None:
    """A spool of 302 MB, in a process that had imported the same before."""
    path = tmp_path / "a.tif"
    grain = np.random.default_rng(0).integers(0, 255, (64, 8192, 3), dtype="u1")
    tags = [(274, "H", 1, orientation, True)]
    tiff(np.tile(grain, (96, 1, 1)), tile=(256, 256), extratags=tags)(path)
    code = (
        "import resource, sys; from pathlib import Path; import numpy, pyvips, tifffile;"
        "from hirescli.output.pictures import to_spool;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "before = peak(); to_spool(sys.argv[1], Path(sys.argv[1] + '.spool'));"
        "print((peak() - before) // 1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 180


# Shrinking


def spool_of(path: Path, levels: NDArray[np.uint16]) -> Path:
    height_px, width_px, _ = levels.shape
    with Spool.create(path, width_px=width_px, height_px=height_px, bits=16) as spool:
        spool.write_rows(0, levels)
    return path


def levels_of(path: Path) -> NDArray[np.float64]:
    with Spool.open(path) as spool:
        return spool.read_rows(0, spool.height_px).astype(np.float64)


@pytest.mark.parametrize("size", [(57, 40), (149, 110), (50, 500), (700, 33), (12, 9)])
def test_a_spool_is_shrunk_as_pillow_does(size: tuple[int, int], tmp_path: Path) -> None:
    source = spool_of(tmp_path / "s", LEVELS_16)
    target = shrunk_spool(source, tmp_path / "t", width_px=size[0], height_px=size[1])
    kept = min(size[0], 150), min(size[1], 110)
    channels = [
        Image.fromarray(LEVELS_16[..., c].astype("f4")).resize(kept, Image.Resampling.LANCZOS)
        for c in range(3)
    ]
    wanted = np.stack([np.asarray(each) for each in channels], axis=-1).clip(0, 65535)
    assert np.abs(levels_of(target) - wanted).max() < 65535 * 0.01


def test_fine_stripes_become_grey_and_not_other_stripes(tmp_path: Path) -> None:
    stripes = np.zeros((400, 400, 3), "u2")
    stripes[::2] = 65535
    source = spool_of(tmp_path / "s", stripes)
    target = shrunk_spool(source, tmp_path / "t", width_px=96, height_px=96)
    inner = levels_of(target)[4:-4]
    assert np.abs(inner / 65535 - 0.5).max() < 0.02


def test_shrunk_spools_fit_the_enlarger(tmp_path: Path) -> None:
    source = spool_of(tmp_path / "s", LEVELS_16)
    assert shrunk_spool(source, tmp_path / "t", width_px=150, height_px=999) == source
    assert not (tmp_path / "t").exists()
    target = shrunk_spool(source, tmp_path / "t", width_px=64, height_px=999)
    with Spool.open(target) as spool:
        made = Resized(spool, width_px=64, height_px=999).rows(0, 999)
    assert made.shape == (999, 64, 3)
    assert abs(float(made.mean()) - LEVELS_16.mean() / 65535) < 0.01
