"""Where the limits of verdicts come from: rendered pictures, as they are and with planted faults.

`python -m hirescli.evaluation.inspection.calibration` prints the tables of docs/inspect.md. It
needs the extra `train`, which renders the pictures.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hirescli.evaluation.inspection import repetition, seams, sharpness, tones
from hirescli.evaluation.inspection.repeats import Repeats
from hirescli.evaluation.inspection.seams import Seam
from hirescli.evaluation.inspection.verdicts import REPETITION_LOOK, seam_verdict
from hirescli.evaluation.tables import table
from hirescli.training.scenes import FAMILIES, render

SIDE_PX = 1024
PERIOD_PX, OFFSET_PX = 256, (37, 101)
GREY = (1.0, 1.0, 1.0)
COLOUR = (1.0, -0.2126 / 0.7152, 0.0)  # red up, green down: luma stays
Picture = NDArray[Any]


def pictures() -> Iterator[Picture]:
    """One of each family, (side, side, 3), uint8."""
    for seed, family in enumerate(FAMILIES):
        yield render(seed=seed, size_px=SIDE_PX, family=family).picture


def tiled(
    picture: Picture,
    *,
    jump: float,
    ramp: int = 1,
    colour: tuple[float, float, float] = (1, 1, 1),
    period: int = PERIOD_PX,
    offset: tuple[int, int] = OFFSET_PX,
) -> Picture:
    """As a tiled decoder leaves a picture: each tile brighter or darker by half a jump.

    Args:
        picture: (height, width, 3), levels of 255.
        jump: In such levels.
        ramp: Pixels over which tiles are blended; 1: not at all.
        colour: Share of the jump in red, green and blue.
        period: Side of a tile in px.
        offset: First column and row that begin a tile.

    Returns:
        The same shape, uint8.
    """
    rng = np.random.default_rng(5)
    (iy, wy), (ix, wx) = (
        _places(side, period, first, ramp)
        for side, first in zip(picture.shape[:2], offset[::-1], strict=True)
    )
    levels = rng.choice([-0.5, 0.5], (iy.max() + 1, ix.max() + 1)) * jump
    across = levels[:, ix] * wx + levels[:, np.maximum(ix - 1, 0)] * (1 - wx)
    both = across[iy] * wy[:, None] + across[np.maximum(iy - 1, 0)] * (1 - wy[:, None])
    # What a decoder gives is no whole number before it is rounded.
    between = picture + rng.uniform(-0.5, 0.5, picture.shape)
    made: Picture = np.clip(np.rint(between + both[:, :, None] * colour), 0, 255).astype(np.uint8)
    return made


def seams_table(all_pictures: list[Picture]) -> str:
    """How many directions of all pictures are called what, by the planted jump."""
    plants = [(0, 1, GREY), (1, 1, GREY), (2, 1, GREY), (4, 1, GREY), (2, 32, GREY), (8, 32, GREY),
              (1, 1, COLOUR), (2, 1, COLOUR), (4, 1, COLOUR), (10, 1, COLOUR)]  # fmt: skip
    rows = []
    for jump, ramp, colour in plants:
        found = [
            seam
            for picture in all_pictures
            for seam in _seams(tiled(picture, jump=jump, ramp=ramp, colour=colour))
        ]
        verdicts = [seam_verdict(seam) for seam in found]
        right = sum(_is_planted(seam, ramp) for seam in found)
        counts = [str(verdicts.count(verdict)) for verdict in ("fine", "look", "bad")]
        planted = f"{jump} over {ramp} px" if jump else "none"
        planted += ", in colour alone" if colour == COLOUR else ""
        z = f"{statistics.median(seam.z for seam in found):.1f}"
        largest = f"{max(seam.z for seam in found):.1f}"
        rows.append([planted, *counts, str(right) if jump else "-", z, largest])
    heads = ["planted jump, levels", "fine", "look", "bad", "right place", "median z", "largest z"]
    return table(heads, rows)


def repetition_table(all_pictures: list[Picture]) -> str:
    """Scores as they are, and with patches of the same pictures repeated."""
    kinds: dict[str, Callable[[Picture], Picture]] = {
        "none": lambda picture: picture,
        "a patch of 128 px everywhere": lambda picture: np.tile(picture[:128, :128], (8, 8, 1)),
        "a quarter copied beside itself": _copied,
    }
    rows = []
    for name, make in kinds.items():
        scores = [repetition.strongest(tones.luma(make(each))).score for each in all_pictures]
        above = sum(score >= REPETITION_LOOK for score in scores)
        values = (min(scores), statistics.median(scores), max(scores))
        rows.append([name, *(f"{value:.3f}" for value in values), f"{above} of {len(scores)}"])
    return table(["planted repetition", "least", "median", "largest", "found"], rows)


def sharpness_table(all_pictures: list[Picture]) -> str:
    """What share of the size is called real, after an enlargement."""
    rows = []
    for factor in (1, 2, 4):
        kernels = ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")
        for name in kernels if factor > 1 else ("LANCZOS",):
            found = [_said_scale(each, factor, name) for each in all_pictures]
            right = sum(scale == 1 / factor for scale in found)
            kernel = "-" if factor == 1 else name.lower()
            rows.append([f"{factor} times", kernel, f"{right} of {len(found)}"])
    return table(["enlarged", "by", "said rightly"], rows)


def _places(side: int, period: int, offset: int, ramp: int) -> tuple[Any, Any]:
    """For each pixel its tile, and the share of that tile in it."""
    place = np.arange(side) - offset
    weight = np.clip((place % period + 0.5) / ramp, 0, 1) if ramp > 1 else np.ones(side)
    return place // period + 1, weight


def _seams(picture: Picture) -> list[Seam]:
    lines = seams.LineMeans(picture.shape[1], picture.shape[0])
    lines.fold(picture)
    columns, rows = lines.finish()
    found = (
        seams.strongest(seams.find_seams(columns, "columns")),
        seams.strongest(seams.find_seams(rows, "rows")),
    )
    return [seam for seam in found if seam is not None]


def _is_planted(seam: Seam, ramp: int) -> bool:
    first = OFFSET_PX[0 if seam.axis == "columns" else 1]
    near = abs((seam.offset_px - first + PERIOD_PX // 2) % PERIOD_PX - PERIOD_PX // 2)
    return seam.period_px % PERIOD_PX == 0 and near <= ramp + seam.ramp_px


def _copied(picture: Picture) -> Picture:
    made = picture.copy()
    half = SIDE_PX // 2
    made[half:, half:] = made[half:, :half]
    return made


def _said_scale(picture: Picture, factor: int, kernel: str) -> float | None:
    small = Image.fromarray(picture[: SIDE_PX // 2, : SIDE_PX // 2])
    size = (small.width * factor, small.height * factor)
    large = np.asarray(small.resize(size, Image.Resampling[kernel]))
    pyramid, repeats = sharpness.Pyramid(*size), Repeats(*size)
    levels = tones.luma(large)
    pyramid.fold(levels)
    repeats.fold(levels)
    return sharpness.effective_scale(pyramid.finish(), repeats.finish())


def main() -> None:
    """Print all tables."""
    every = list(pictures())
    for made in (seams_table, repetition_table, sharpness_table):
        sys.stdout.write(made(every) + "\n\n")


if __name__ == "__main__":
    main()
