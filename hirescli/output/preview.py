"""Small JPEGs of finished stages, beside the output."""

from __future__ import annotations

import os
from pathlib import Path

from hirescli.errors import RequestError, RunError
from hirescli.output.containers import jpeg_head, jpeg_place, jpeg_segments
from hirescli.output.metadata import inspect
from hirescli.output.picture_header import load
from hirescli.output.texts import describe
from hirescli.recipe import Recipe

PREVIEW_PX = 1024
_QUALITY = 85


def preview_path(output: Path, index: int) -> Path:
    """Where the preview of a stage stands."""
    return output.with_name(f"{output.name}.stage-{index}.jpg")


def write_preview(
    spool: Path, output: Path, index: int, *, recipe: Recipe | None = None, overwrite: bool = False
) -> Path:
    """Shrink a stage's picture into a JPEG; the spool is read once, from top to bottom.

    It carries the recipe of the output, so that one can tell to which picture it belongs.

    Args:
        spool: Of 8 or 16 bits; all its rows stand.
        output: The final name of the image.
        index: Of the stage, from 0.
        recipe: Of the output; it is left out where its `metadata` is false.
        overwrite: Whether a file that is no preview of ours may be replaced.

    Returns:
        Its path. An older preview with a recipe is replaced.

    Raises:
        RunError: If it cannot be written, or its name is that of another file.
    """
    import pyvips

    path = preview_path(output, index)
    writing = path.with_name(path.name + ".partial")
    if not overwrite and os.path.lexists(path) and not _has_recipe(path):
        raise RunError(
            f"preview {path} is not written: a file of this name stands there, without a recipe "
            "of hires; move it, or replace it by --overwrite"
        )
    try:
        image = load(spool, "tiff")
        small = image.thumbnail_image(PREVIEW_PX, height=PREVIEW_PX, size="down")
        data = small.colourspace("srgb").jpegsave_buffer(Q=_QUALITY, keep="none")
        # Not through a link that somebody has put there.
        writing.unlink(missing_ok=True)
        with writing.open("xb") as file:
            file.write(_with_texts(data, recipe))
        os.replace(writing, path)
    except (OSError, pyvips.Error) as error:
        writing.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or str(error).strip()
        raise RunError(f"preview {path} is not written: {why}") from error
    return path


def _with_texts(data: bytes, recipe: Recipe | None) -> bytes:
    """A JPEG of libvips with the texts that our outputs carry."""
    if recipe is None or not recipe.metadata:
        return data
    texts = describe(recipe)
    place = jpeg_place(data)
    assert place is not None, "libvips begins a JPEG with a JFIF head"
    segments = jpeg_segments(
        recipe=texts.recipe, parameters=texts.parameters, xmp=texts.xmp, dpi=recipe.dpi
    )
    return data[: place[0]] + jpeg_head(dpi=recipe.dpi) + segments + data[place[1] :]


def _has_recipe(path: Path) -> bool:
    try:
        return not path.is_symlink() and inspect(path).recipe is not None
    except RequestError:
        return False
