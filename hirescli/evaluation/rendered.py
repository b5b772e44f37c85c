"""Features of renders with what they show, for a classifier: made in parts, and kept.

Renders are whole compositions, seen through a lens as training shards are. Those to train on
are made worse at random, a little blurred and with a little noise, since generated pictures are
softer than renders; held-out ones stay as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from torch import nn

from hirescli.errors import RunError
from hirescli.evaluation.attributes import Attributes, attributes_of
from hirescli.evaluation.features import Features, Pictures, features

TRAINED_PER_FAMILY = 160
HELD_OUT_PER_FAMILY = 40
_FIELDS = 8  # along each side
_PART = 8  # renders of each family in one file
_SERIES = 16 << 32  # seeds beyond those of training shards, of either split
_BLUR_PX = (0.3, 1.8)  # deviation of the blur, at 256 px
_NOISE = (1.0, 5.0)  # deviation of the noise, of 255


@dataclass(frozen=True)
class Known:
    """What a classifier sees of pictures (N, d), with what they show."""

    features: Features
    attributes: list[Attributes]


def known_features(
    folder: Path,
    network: nn.Module,
    *,
    size_px: int,
    per_family: int,
    held_out: bool,
    told: Callable[[int], None] = lambda _: None,
) -> Known:
    """Render pictures and take their features; parts that stand in the folder are read.

    Args:
        folder: For the parts; made if it is not there.
        network: As for `features`.
        size_px: Side of the renders.
        per_family: Renders of each family, a multiple of 8.
        held_out: Whether they are those to test on.
        told: Called with the number of renders there are so far.

    Raises:
        RunError: If the folder cannot be written.
    """
    assert per_family % _PART == 0, f"{per_family} of each family is no multiple of {_PART}"
    folder.mkdir(parents=True, exist_ok=True)
    split = "held-out" if held_out else "trained"
    parts: list[Known] = []
    for number in range(per_family // _PART):
        path = folder / f"{split}-{size_px}px-{number:03d}.npz"
        part = _read(path)
        if part is None:
            part = _part(number, network, size_px=size_px, held_out=held_out)
            _write(path, part)
        parts.append(part)
        told(sum(len(each.attributes) for each in parts))
    joined = np.concatenate([part.features for part in parts])
    return Known(joined, [each for part in parts for each in part.attributes])


def described(pictures: Pictures, network: nn.Module) -> Features:
    """What the classifier sees: features, and the colours of 8x8 fields.

    A network that knows things of photographs is nearly blind to a turquoise light being green.

    Args:
        pictures: (N, H, W, 3) uint8, H and W multiples of 8.
        network: As for `features`.

    Returns:
        (N, d + 192) float32.
    """
    count, height, width, _ = pictures.shape
    fields = pictures.reshape(count, _FIELDS, height // _FIELDS, _FIELDS, width // _FIELDS, 3)
    colours = fields.mean((2, 4), dtype=np.float32).reshape(count, -1)
    return np.concatenate([features(pictures, network), colours], axis=1)


def worsened(picture: Pictures, rng: np.random.Generator) -> Pictures:
    """A render (H, W, 3) blurred in three of five cases, noisy in every second."""
    from scipy.ndimage import gaussian_filter

    x = picture.astype(np.float32)
    if rng.random() < 0.6:
        sigma = rng.uniform(*_BLUR_PX) * len(picture) / 256
        x = gaussian_filter(x, (sigma, sigma, 0))
    if rng.random() < 0.5:
        x += rng.normal(0, rng.uniform(*_NOISE), x.shape).astype(np.float32)
    made: Pictures = np.rint(x).clip(0, 255).astype(np.uint8)
    return made


def _part(number: int, network: nn.Module, *, size_px: int, held_out: bool) -> Known:
    from hirescli.training.dataset import HELD_OUT_SEED, soften
    from hirescli.training.scenes import FAMILIES, render

    pictures, shown = [], []
    for place in range(_PART * len(FAMILIES)):
        seed = _SERIES + number * _PART * len(FAMILIES) + place
        seed += HELD_OUT_SEED if held_out else 0
        family = FAMILIES[place % len(FAMILIES)]
        scene = render(seed=seed, size_px=size_px, family=family, zoom="wide")
        picture = soften(scene.picture)
        pictures.append(picture if held_out else worsened(picture, np.random.default_rng(seed)))
        shown.append(attributes_of(scene))
    return Known(described(np.stack(pictures), network), shown)


def _read(path: Path) -> Known | None:
    """A part; None: it is missing, or damaged and to be made again."""
    try:
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            rows = json.loads(str(file["attributes"]))
            return Known(file["features"], [Attributes(**row) for row in rows])
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile):
        return None


def _write(path: Path, part: Known) -> None:
    rows = json.dumps([asdict(each) for each in part.attributes])
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, features=part.features, attributes=np.array(rows))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
