"""Contact sheets of rendered scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from hirescli.training.scenes import Scene


def contact_sheet(scenes: Sequence[Scene], columns: int) -> Image.Image:
    """Lay pictures out in rows of `columns`, the first one at the top left.

    Args:
        scenes: at least one scene; cells have the first one's size.
        columns: pictures per row, 1 or more.

    Raises:
        ValueError: if there are no scenes or `columns` is below 1.
    """
    if not scenes or columns < 1:
        raise ValueError(f"need scenes and columns >= 1, got {len(scenes)} and {columns}")
    cell_px = scenes[0].picture.shape[0]
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * cell_px, rows * cell_px))
    for index, scene in enumerate(scenes):
        row, column = divmod(index, columns)
        sheet.paste(Image.fromarray(scene.picture), (column * cell_px, row * cell_px))
    return sheet
