"""Pictures that are small enough to be held whole: read upright in sRGB, their middle cut out.

What training learns from and what evaluation compares is read here, so that both see the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from hirescli.output.pictures import to_spool
from hirescli.output.spool import Spool

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".avif")


def read_rgb(path: Path, *, spills: Path | None = None) -> Image.Image:
    """A picture, upright, in sRGB of 8 bits, as `to_spool` reads it.

    Args:
        path: A local file.
        spills: A folder for the decoded picture, for as long as it is read; None: the system's.

    Raises:
        RequestError: If it is missing, damaged or no picture.
        RunError: If the disk has no room.
    """
    with tempfile.TemporaryDirectory(dir=spills) as folder:
        facts = to_spool(path, Path(folder) / "picture.tif", bits=8)
        with Spool.open(Path(folder) / "picture.tif") as spool:
            return Image.fromarray(spool.read_rows(0, facts.height_px))


def middle_square(image: Image.Image, side_px: int) -> Image.Image:
    """The largest square around the middle of a picture, resized to (side, side)."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return square.resize((side_px, side_px), Image.Resampling.LANCZOS)
