"""Sets of pictures to compare: folders of picture files, or of training shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from hirescli.errors import RequestError
from hirescli.output import reading
from hirescli.output.reading import SUFFIXES
from hirescli.training.dataset import PICTURE_PX, Pictures, load_pictures

T = TypeVar("T")


def read_set(folder: Path, *, count: int | None = None, kinds: Sequence[str] = ()) -> Pictures:
    """Pictures of a folder: those of its shards, or, where it has none, of its picture files.

    Args:
        folder: Of either.
        count: Pictures, evenly chosen; None: all.
        kinds: Of shards, such as "wide"; none: all kinds.

    Returns:
        (N, 256, 256, 3) uint8 sRGB. Files are cut to their middle square and resized.

    Raises:
        RequestError: If there is no such folder, it holds shards but none of a kind, fewer than
            two pictures, fewer than `count`, or one that cannot be read.
    """
    return some_of_set(folder, count, most=sys.maxsize, kinds=kinds)


def some_of_set(
    folder: Path, count: int | None, *, most: int, kinds: Sequence[str] = ()
) -> Pictures:
    """As `read_set`: `count` pictures, or, if None, all but at most `most`."""
    _check(folder)
    shards = _shards(folder, kinds)
    if shards:
        arrays = [load_pictures(path) for path in shards]
        numbered = [(array, row) for array in arrays for row in range(len(array))]
        return np.stack([array[row] for array, row in _some(folder, numbered, count, most)])
    paths = _some(folder, _files(folder), count, most)
    return np.stack([middle_square(path, PICTURE_PX) for path in paths])


def prompted(folder: Path) -> list[tuple[Path, str]]:
    """Picture files of a folder with their prompts: from a text beside, or from the recipe inside.

    Raises:
        RequestError: If there are none, or one has no prompt.
    """
    from hirescli.output.metadata import inspect

    pairs = []
    for path in _files(folder):
        beside = path.with_suffix(".txt")
        if beside.exists():
            prompt = beside.read_text(encoding="utf-8", errors="replace").strip()
        else:
            prompt = str((inspect(path).recipe or {}).get("prompt", ""))
        if not prompt:
            raise RequestError(f"{path} has no prompt in it; write it into {beside.name} beside")
        pairs.append((path, prompt))
    if not pairs:
        raise RequestError(f"{folder} has no pictures ({', '.join(SUFFIXES)})")
    return pairs


def middle_square(path: Path, side_px: int) -> Pictures:
    """The middle square of a picture file, resized: (side, side, 3) uint8.

    Raises:
        RequestError: If it cannot be read.
    """
    return np.asarray(reading.middle_square(reading.read_rgb(path), side_px))


def _files(folder: Path) -> list[Path]:
    _check(folder)
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder} of pictures; check the path")


def _shards(folder: Path, kinds: Sequence[str]) -> list[Path]:
    found = sorted(folder.glob("*-*.npy"))
    there = {path.name.split("-")[0] for path in found}
    missing = sorted(set(kinds) - there)
    if found and missing:
        raise RequestError(
            f"{folder} has no shards of kind {', '.join(missing)}; it has "
            f"{', '.join(sorted(there))}; give one of these with --kind"
        )
    return [path for path in found if not kinds or path.name.split("-")[0] in kinds]


def _some(folder: Path, items: Sequence[T], count: int | None, most: int) -> list[T]:
    """An even choice of all items: `count`, or, if None, all but at most `most`."""
    count = min(len(items), most) if count is None else count
    if not 2 <= count <= len(items):
        raise RequestError(
            f"{folder} has {len(items)} pictures, {max(2, count)} are needed; give another "
            "folder, or --count"
        )
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]
