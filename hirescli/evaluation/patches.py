"""Patches of large pictures against those of renders of the same scale.

The cascade's picture of a prompt and seed is compared with plain enlargements of the smaller
picture of the same prompt and seed: by Lanczos, and by Real-ESRGAN. All are cut at the same
places. Patches of other renders say what distance is as good as none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from torch import nn

from hirescli.errors import RequestError
from hirescli.evaluation.esrgan import FACTOR, RealEsrgan
from hirescli.evaluation.features import Features, Pictures, features, frechet_distance
from hirescli.evaluation.making import Wanted, make_pictures
from hirescli.evaluation.native import PATCH_PX, WINDOW, grid, native_features, windows

CASCADE, LANCZOS, ESRGAN, RENDERS = "cascade", "Lanczos", "Real-ESRGAN", "other renders"
CROP_PX = 2 * PATCH_PX  # four patches
CROPS = 3  # of one picture
_REFERENCE_PER_FAMILY = 64
_MOST_PX = 8192  # pictures are decoded whole
_LEAST_PX = WINDOW * PATCH_PX

Told = Callable[[str, int], None]
Place = tuple[int, int]


@dataclass(frozen=True)
class PatchDistances:
    """Fréchet distances at one size.

    Attributes:
        size_px: Side of the pictures.
        base_px: Side of those that Lanczos and Real-ESRGAN enlarged.
        patches: Of each way.
        reference: Patches of renders that all are compared with.
        distances: By way.
    """

    size_px: int
    base_px: int
    patches: int
    reference: int
    distances: dict[str, float]


def check_size(size_px: int) -> None:
    """Refuse a size whose patches cannot be compared.

    Raises:
        RequestError: If it is not from 896 to 8192 px, or no multiple of 32.
    """
    if not _LEAST_PX <= size_px <= _MOST_PX or size_px % (8 * FACTOR):
        raise RequestError(
            f"size {size_px} cannot be compared by patches; give a multiple of {8 * FACTOR} from "
            f"{_LEAST_PX} to {_MOST_PX}, such as 2048"
        )


def measure_patches(
    wanted: Sequence[Wanted],
    folder: Path,
    choices: dict[str, Any],
    *,
    size_px: int,
    network: nn.Module,
    enlarger: RealEsrgan | None,
    told: Told = lambda _, __: None,
) -> PatchDistances:
    """Make the pictures and their enlargements, and compare their patches.

    Everything that is made is kept in the folder, and the same call goes on where it ended.

    Args:
        wanted: Pictures.
        folder: For pictures, crops and features.
        choices: A partial recipe, without size.
        size_px: As `check_size` lets pass.
        network: As for `features`.
        enlarger: Real-ESRGAN; None: it is left out.
        told: Called with what is made and how many there are.

    Raises:
        RequestError: If a choice is wrong, or another picture is in the way.
        RunError: If a run fails.
    """
    check_size(size_px)
    base_px = size_px // FACTOR
    for side_px in (base_px, size_px):
        (folder / str(side_px)).mkdir(parents=True, exist_ok=True)
        make_pictures(
            wanted,
            folder / str(side_px),
            {**choices, "size": side_px},
            told=lambda count, side_px=side_px: told(f"pictures of {side_px} px", count),  # type: ignore[misc]
        )
    made = _made(wanted, folder, size_px, enlarger, told)
    values = {way: features(np.stack(patches), network) for way, patches in made.items()}
    count = len(values[CASCADE])
    reference, others = _renders(folder / "renders", network, size_px, count, told)
    values[RENDERS] = others
    return PatchDistances(
        size_px=size_px,
        base_px=base_px,
        patches=count,
        reference=len(reference),
        distances={way: frechet_distance(each, reference) for way, each in values.items()},
    )


def places(size_px: int, number: int) -> list[Place]:
    """Upper left corners of the crops of a picture, on the pixels of its base."""
    random = np.random.default_rng([size_px, number])
    room = (size_px - CROP_PX) // FACTOR
    return [
        (int(y) * FACTOR, int(x) * FACTOR) for y, x in random.integers(0, room + 1, (CROPS, 2))
    ]


def lanczos_crop(base: Pictures, place: Place) -> Pictures:
    """A crop of a base (h, w, 3) that Pillow enlarges four times."""
    y, x = (each / FACTOR for each in place)
    side = CROP_PX / FACTOR
    image = Image.fromarray(base)
    made = image.resize((CROP_PX, CROP_PX), Image.Resampling.LANCZOS, (x, y, x + side, y + side))
    return np.asarray(made)


def _made(
    wanted: Sequence[Wanted],
    folder: Path,
    size_px: int,
    enlarger: RealEsrgan | None,
    told: Told,
) -> dict[str, list[Pictures]]:
    """Patches by way."""
    made: dict[str, list[Pictures]] = {CASCADE: [], LANCZOS: []}
    for number, each in enumerate(wanted):
        whole = _pixels(folder / str(size_px) / each.name)
        base = _pixels(folder / str(size_px // FACTOR) / each.name)
        for y, x in places(size_px, number):
            made[CASCADE] += grid(whole[y : y + CROP_PX, x : x + CROP_PX])
            made[LANCZOS] += grid(lanczos_crop(base, (y, x)))
            if enlarger is not None:
                crop = _kept_crop(folder / "realesrgan", base, (y, x), enlarger)
                made.setdefault(ESRGAN, []).extend(grid(crop))
        told(f"enlarged to {size_px} px", number + 1)
    return made


def _kept_crop(folder: Path, base: Pictures, place: Place, enlarger: RealEsrgan) -> Pictures:
    """A crop by Real-ESRGAN, told by its base's bytes and its place."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(base.tobytes()).hexdigest()[:16]
    path = folder / f"{name}-{place[0]}-{place[1]}.npz"
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            kept: Pictures = file["crop"]
            return kept
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        crop = enlarger.crop(base, place, CROP_PX)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, crop=crop)
        os.replace(partial, path)
        return crop


def _renders(
    folder: Path, network: nn.Module, size_px: int, count: int, told: Told
) -> tuple[Features, Features]:
    """Features of the reference, and of `count` patches of other renders."""

    def some(words: str, per_family: int, first: int) -> Features:
        return native_features(
            folder,
            network,
            size_px=size_px,
            per_family=per_family,
            first=first,
            told=lambda done: told(words, done),
        )

    reference = some("families of the reference", _REFERENCE_PER_FAMILY, 0)
    first = windows(size_px, _REFERENCE_PER_FAMILY)
    families = len(reference) // _REFERENCE_PER_FAMILY
    others = some("families of other renders", -(-count // families), first)
    return reference, others[np.linspace(0, len(others) - 1, count).round().astype(int)]


def _pixels(path: Path) -> Pictures:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))
