"""Where the base stage of a picture lies: named, beside the picture, or in its run directory."""

from __future__ import annotations

from pathlib import Path

from hirescli.runs.directory import run_path

_STAGE = "stage-0"


def base_of(path: Path) -> Path | None:
    """The picture of the first stage, if it was kept.

    Args:
        path: The output.

    Returns:
        The preview `OUTPUT.stage-0.jpg`, else the spool of the first stage in `OUTPUT.run`; None
        if there is neither, or the output is its own base.
    """
    preview = path.with_name(f"{path.name}.{_STAGE}.jpg")
    spool = run_path(path) / f"{_STAGE}.spool.tif"
    return next((each for each in (preview, spool) if each.is_file()), None)
