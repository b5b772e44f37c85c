"""Patches of renders drawn at the scale of a large picture, without drawing all of it.

A close view is a window of a quarter of the composition's side: at a quarter of the size it
shows what a picture of that size would show there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch import nn

from hirescli.errors import RunError
from hirescli.evaluation.features import Features, Pictures, features

PATCH_PX = 224  # what the network looks at, so that no patch is resized
WINDOW = 4  # a close view's enlargement
_SERIES = 17 << 32  # seeds beyond those of training shards and of the classifier


def native_features(
    folder: Path,
    network: nn.Module,
    *,
    size_px: int,
    per_family: int,
    first: int = 0,
    told: Callable[[int], None] = lambda _: None,
) -> Features:
    """Features of patches of held-out renders at the scale of `size_px`.

    Args:
        folder: Where they are kept; those that stand there are read.
        network: As for `features`.
        size_px: Side of the picture that the renders are parts of.
        per_family: Patches of each family.
        first: Number of the first window; other windows are other renders.
        told: Called with the number of families that are done.

    Returns:
        (14 per_family, d).

    Raises:
        RunError: If the folder cannot be written.
    """
    from hirescli.training.scenes import FAMILIES

    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for place, family in enumerate(FAMILIES):
        path = folder / f"native-{size_px}px-{first:03d}-{per_family}-{family}.npy"
        part = _read(path)
        if part is None:
            patches = _patches(family, size_px=size_px, count=per_family, first=first)
            part = features(np.stack(patches), network)
            _write(path, part)
        parts.append(part)
        told(place + 1)
    return np.concatenate(parts)


def windows(size_px: int, count: int) -> int:
    """Windows that are needed for so many patches of a family."""
    return -(-count // (size_px // WINDOW // PATCH_PX) ** 2)


def grid(picture: Pictures) -> Iterator[Pictures]:
    """Patches (224, 224, 3) of a picture (H, W, 3) that lie side by side, from its corner."""
    height, width = picture.shape[:2]
    for y in range(0, height - PATCH_PX + 1, PATCH_PX):
        for x in range(0, width - PATCH_PX + 1, PATCH_PX):
            yield picture[y : y + PATCH_PX, x : x + PATCH_PX]


def _patches(family: str, *, size_px: int, count: int, first: int) -> list[Pictures]:
    from hirescli.training.dataset import HELD_OUT_SEED, soften
    from hirescli.training.scenes import render

    made: list[Pictures] = []
    for number in range(first, first + windows(size_px, count)):
        seed = HELD_OUT_SEED + _SERIES + number
        scene = render(seed=seed, size_px=size_px // WINDOW, family=family, zoom="close")
        made += grid(soften(scene.picture))
    return made[:count]


def _read(path: Path) -> Features | None:
    """Kept features; None: they are missing, or damaged and to be made again."""
    try:
        with path.open("rb") as opened:
            made: Features = np.load(opened, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return made


def _write(path: Path, values: Features) -> None:
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.save(file, values)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
