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
    said = json.loads((path / "info.json").read_text())
    assert said["id"] == path.name
    (tiles,) = said["tiles"]
    levels = []
    for factor in tiles["scaleFactors"]:
        places = {}
        for file in path.glob("*,*/*/0/default.*"):
            x, y, width, height = map(int, file.parts[-4].split(","))
            full = tiles["width"] * factor
            whole = width == min(full, said["width"] - x) and height == min(
                full, said["height"] - y
            )
            pixels = by_imagecodecs(file)
            if whole and pixels.shape[1] == -(-width // factor):
                places[y // full, x // full] = pixels
        if places:
            levels.append(_joined(places))
    # A level of a single tile goes by another name.
    return [*levels, *map(by_imagecodecs, path.glob("full/*/0/default.*"))]


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
