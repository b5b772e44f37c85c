"""Where the base stage of a picture lies: named, beside the picture, or in its run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hirescli.errors import RequestError
from hirescli.output.metadata import inspect
from hirescli.runs.directory import run_path

_STAGE = "stage-0"
_TELLING = ("prompt", "seed", "model", "width_px", "height_px")


def base_of(path: Path) -> Path | None:
    """The picture of the first stage, if it was kept.

    Args:
        path: The output.

    Returns:
        The preview `OUTPUT.stage-0.jpg`, else the spool of the first stage in `OUTPUT.run`; None
        if there is neither. A preview whose recipe is that of another picture, of an earlier
        output of this name, is passed over.
    """
    preview = path.with_name(f"{path.name}.{_STAGE}.jpg")
    spool = run_path(path) / f"{_STAGE}.spool.tif"
    if preview.is_file() and _belongs(preview, path):
        return preview
    return spool if spool.is_file() else None


def _belongs(preview: Path, output: Path) -> bool:
    """Whether it shows the same picture, as far as recipes in both tell."""
    ours, theirs = _recipe(output), _recipe(preview)
    if ours is None or theirs is None:
        return True
    return all(ours.get(key) == theirs.get(key) for key in _TELLING)


def _recipe(path: Path) -> dict[str, Any] | None:
    try:
        return inspect(path).recipe
    except RequestError:  # a format without one, or damaged: it is read soon enough
        return None
