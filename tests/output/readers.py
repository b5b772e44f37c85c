"""Readers of outputs that share no code with their writers; tiles are put together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pyvips
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]


def by_tifffile(path: Path) -> Pixels:
    return tifffile.imread(path)


def by_pillow(path: Path) -> Pixels:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def by_vips(path: Path) -> Pixels:
    return pyvips.Image.new_from_file(str(path), fail_on="warning").numpy()


def by_imagecodecs(path: Path) -> Pixels:
    return imagecodecs.imread(path)


def by_openslide(path: Path) -> Pixels:
    with openslide.OpenSlide(str(path)) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3]


def tiff_levels(path: Path) -> list[Pixels]:
    """Pages, or the sub-directories of the first."""
    with tifffile.TiffFile(path) as tiff:
        pages = [page for first in tiff.pages for page in (first, *(first.pages or ()))]
        return [page.asarray() for page in pages]


def deep_zoom_levels(path: Path) -> list[Pixels]:
    said = path.read_text()
    tile_px = int(re.search(r'TileSize="(\d+)"', said)[1])
    assert 'Overlap="0"' in said
    folder = path.with_name(path.stem + "_files")
    numbers = sorted((int(f.name) for f in folder.iterdir() if f.is_dir()), reverse=True)
    assert numbers == list(range(len(numbers)))[::-1]
    return [_grid((folder / str(n)).glob("*_*.*"), r"(\d+)_(\d+)", tile_px) for n in numbers]


def zoomify_levels(path: Path) -> list[Pixels]:
    said = (path / "ImageProperties.xml").read_text()
    tile_px = int(re.search(r'TILESIZE="(\d+)"', said)[1])
    files = list(path.glob("TileGroup*/*"))
    assert len(files) == int(re.search(r'NUMTILES="(\d+)"', said)[1])
    top = max(int(file.name.split("-")[0]) for file in files)
    return [
        _grid((f for f in files if f.name.startswith(f"{n}-")), r"\d+-(\d+)-(\d+)", tile_px)
        for n in range(top, -1, -1)
    ]


def iiif_levels(path: Path) -> list[Pixels]:
    """By the addresses that viewers ask for; no other file is there."""
    said = json.loads((path / "info.json").read_text())
    assert (said["id"], said["profile"]) == (path.name, "level0")
    (tiles,) = said["tiles"]
    (format_,) = said.get("preferredFormats", ["jpg"])
    levels, asked = [], set()
    for factor in tiles["scaleFactors"]:
        places = _iiif_places(said["width"], said["height"], tiles["width"], factor)
        files = {at: path / place / "0" / f"default.{format_}" for at, place in places.items()}
        levels.append(_joined({at: by_imagecodecs(file) for at, file in files.items()}))
        asked |= set(files.values())
    assert set(path.rglob("default.*")) == asked
    return levels


def _iiif_places(
    width_px: int, height_px: int, tile_px: int, factor: int
) -> dict[tuple[int, int], str]:
    """Region and size of each tile (row, column) in their canonical forms.

    References:
        IIIF Image API 3.0, 4.7 (canonical URI syntax), and implementation notes, 9 (tiles).
    """
    step_px, places = tile_px * factor, {}
    for row, y in enumerate(range(0, height_px, step_px)):
        for column, x in enumerate(range(0, width_px, step_px)):
            width, height = min(step_px, width_px - x), min(step_px, height_px - y)
            whole = (width, height) == (width_px, height_px)
            size = f"{-(-width // factor)},{-(-height // factor)}"
            region = "full" if whole else f"{x},{y},{width},{height}"
            places[row, column] = f"{region}/{'max' if whole and factor == 1 else size}"
    return places


def _grid(files: Any, pattern: str, tile_px: int) -> Pixels:
    """Files whose names hold column and row."""
    places = {}
    for file in files:
        column, row = map(int, re.match(pattern, file.name).groups())
        places[row, column] = by_imagecodecs(file)
    assert all(max(tile.shape[:2]) <= tile_px for tile in places.values())
    return _joined(places)


def _joined(places: dict[tuple[int, int], Pixels]) -> Pixels:
    rows, columns = (1 + max(place[i] for place in places) for i in (0, 1))
    return np.concatenate(
        [np.concatenate([places[r, c] for c in range(columns)], axis=1) for r in range(rows)]
    )


def first_of(levels: Callable[[Path], list[Pixels]]) -> Callable[[Path], Pixels]:
    return lambda path: levels(path)[0]


def psnr(made: Pixels, wanted: Pixels) -> float:
    """In dB of 8 bits."""
    error = np.mean((made.astype(float) - wanted) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-12)))
