"""Photographs as training shards: squares of an image folder, beside those that are rendered.

Shards are those of `dataset`, of the kind ``photo``: the autoencoder takes them as a minority,
the denoiser never. A photograph is cut at several sizes, each half of the one
before, so that both its grain and its whole are seen. Photographs that are held out are held
out whole: no square of theirs is trained on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from hirescli.errors import ConfigError, RequestError, RunError
from hirescli.output.reading import SUFFIXES, read_rgb
from hirescli.training.dataset import (
    PHOTO,
    PICTURE_PX,
    PICTURES_PER_SHARD,
    Pictures,
    shard_name,
    write_shard,
)

SQUARES = 8  # of one photograph, at most
HELD_OUT_SHARE = 0.1
_MOST_FAULTS = 100  # shown at once


@dataclass(frozen=True)
class Split:
    """The files of an image folder.

    Attributes:
        trained: Those to train on, sorted.
        held_out: Those to test on, sorted.
    """

    trained: tuple[Path, ...]
    held_out: tuple[Path, ...]


def split(folder: Path, *, held_out_share: float = HELD_OUT_SHARE) -> Split:
    """Find the pictures of a folder and all below it, and hold some out by their names.

    A file's name decides, so that files that are added later change nothing for the others.
    At least one is held out.

    Args:
        folder: Of pictures.
        held_out_share: Of the files, above 0 and below 1.

    Raises:
        RequestError: If the folder is missing or has fewer than two pictures.
    """
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder} of photographs; check the path")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < 2:
        known = ", ".join(SUFFIXES)
        raise RequestError(
            f"{folder} has {len(paths)} pictures ({known}); two or more are needed, one to train "
            "on and one to test on"
        )
    draws = {path: _draw(path.relative_to(folder)) for path in paths}
    least = min(draws.values())
    held = {path for path, draw in draws.items() if draw < held_out_share or draw == least}
    return Split(
        trained=tuple(path for path in paths if path not in held),
        held_out=tuple(path for path in paths if path in held),
    )


def check(paths: Sequence[Path]) -> None:
    """Read all pictures once, so that what is wrong with them is said together.

    Raises:
        ConfigError: If some are damaged or too small.
    """
    faults = []
    for path in paths:
        try:
            read(path)
        except RequestError as error:
            faults.append(str(error))
    if faults:
        more = len(faults) - _MOST_FAULTS
        shown = [*faults[:_MOST_FAULTS], f"and {more} more"] if more > 0 else faults
        raise ConfigError("the photographs", shown)


def read(path: Path) -> Image.Image:
    """A photograph in sRGB, turned as its camera says.

    Raises:
        RequestError: If it is damaged, or smaller than 256 px.
    """
    image = read_rgb(path)
    if min(image.size) < PICTURE_PX:
        raise RequestError(
            f"{path} has {image.width}x{image.height} px; both sides need {PICTURE_PX} or more"
        )
    return image


def squares(image: Image.Image, most: int = SQUARES) -> list[Pictures]:
    """Squares (256, 256, 3) of a photograph at its own size, half of it, and so on.

    Those of one size do not overlap and lie around its middle. The last size is the one whose
    short side is 256 px.

    Args:
        image: RGB, both sides 256 px or more.
        most: Squares, evenly chosen among all if there are more.
    """
    cut: list[Pictures] = []
    for level in _levels(image):
        cut += [np.asarray(level.crop(box)) for box in _boxes(level.size)]
    chosen = np.linspace(0, len(cut) - 1, min(most, len(cut))).round().astype(int)
    return [cut[index] for index in chosen]


def write_shards(paths: Sequence[Path], folder: Path, *, most: int = SQUARES) -> int:
    """Write the squares of photographs as shards, in place of those that are there.

    Captions are the lines of ``NAME.txt`` beside ``NAME.jpg``, or one that is empty.

    Args:
        paths: Of photographs that `check` let pass.
        folder: For the shards; made if it is not there.
        most: Squares of one photograph.

    Returns:
        The number of squares.

    Raises:
        RequestError: If a photograph has changed since and cannot be read.
        RunError: If the folder cannot be written.
    """
    made = ((square, _captions(path)) for path in paths for square in squares(read(path), most))
    new = folder / f"{PHOTO}s.partial"  # the old ones stand until all can be put in their place
    count = 0
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        while shard := list(islice(made, PICTURES_PER_SHARD)):
            write_shard(new / shard_name(PHOTO, count // PICTURES_PER_SHARD), shard)
            count += len(shard)
        for old in folder.glob(f"{PHOTO}-*.npy"):
            old.unlink()
            old.with_suffix(".json").unlink(missing_ok=True)
        for path in sorted(new.iterdir()):  # captions come first, as when they are written
            os.replace(path, folder / path.name)
    except OSError as error:
        raise RunError(f"cannot write shards to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return count


def _captions(path: Path) -> list[str]:
    beside = path.with_suffix(".txt")
    if not beside.exists():
        return [""]
    lines = beside.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()] or [""]


def _draw(name: Path) -> float:
    """A number in [0, 1) that belongs to a name."""
    return int.from_bytes(hashlib.sha256(name.as_posix().encode()).digest()[:7]) / 2**56


def _levels(image: Image.Image) -> Iterator[Image.Image]:
    while min(image.size) >= 2 * PICTURE_PX:
        yield image
        image = _resized(image, (image.width // 2, image.height // 2))
    yield image
    if min(image.size) > PICTURE_PX:
        scale = PICTURE_PX / min(image.size)
        yield _resized(image, (round(image.width * scale), round(image.height * scale)))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS)


def _boxes(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right, bottom of as many squares as fit, around the middle."""
    columns, rows = (side // PICTURE_PX for side in size)
    x0, y0 = (side % PICTURE_PX // 2 for side in size)
    for row in range(rows):
        for column in range(columns):
            left, top = x0 + column * PICTURE_PX, y0 + row * PICTURE_PX
            yield left, top, left + PICTURE_PX, top + PICTURE_PX
