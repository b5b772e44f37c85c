"""Small JPEGs of finished stages, beside the output."""

from __future__ import annotations

import os
from pathlib import Path

from hirescli.errors import RunError
from hirescli.output.picture_header import load

PREVIEW_PX = 1024
_QUALITY = 85


def preview_path(output: Path, index: int) -> Path:
    """Where the preview of a stage stands."""
    return output.with_name(f"{output.name}.stage-{index}.jpg")


def write_preview(spool: Path, output: Path, index: int) -> Path:
    """Shrink a stage's picture into a JPEG; the spool is read once, from top to bottom.

    Args:
        spool: Of 8 or 16 bits; all its rows stand.
        output: The final name of the image.
        index: Of the stage, from 0.

    Returns:
        Its path. An older preview of the same name is replaced.

    Raises:
        RunError: If it cannot be written.
    """
    import pyvips

    path = preview_path(output, index)
    writing = path.with_name(path.name + ".partial")
    try:
        image = load(spool, "tiff")
        small = image.thumbnail_image(PREVIEW_PX, height=PREVIEW_PX, size="down")
        data = small.colourspace("srgb").jpegsave_buffer(Q=_QUALITY, keep="none")
        # Not through a link that somebody has put there.
        writing.unlink(missing_ok=True)
        with writing.open("xb") as file:
            file.write(data)
        os.replace(writing, path)
    except (OSError, pyvips.Error) as error:
        writing.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or str(error).strip()
        raise RunError(f"preview {path} is not written: {why}") from error
    return path
