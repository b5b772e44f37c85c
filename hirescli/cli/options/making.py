"""Options of the commands that make pictures: what they make, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer


def _flag(*names: str, text: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="Run")


@dataclass(frozen=True)
class MakingOptions:
    """What is made, and what is said of it."""

    dry_run: Annotated[
        bool,
        _flag("--dry-run", text="Plan and check everything, show the plan, make nothing."),
    ] = False
    overwrite: Annotated[
        bool,
        _flag("--overwrite", text="Replace an output that exists. It stays until the new stands."),
    ] = False
    restart: Annotated[
        bool,
        _flag(
            "--restart",
            text="Start over in place of going on where an earlier run of the output ended.",
        ),
    ] = False
    keep_run: Annotated[
        bool,
        _flag(
            "--keep-run",
            text="Leave the run directory of a finished image: its latents can be decoded again "
            "with --from-latents.",
        ),
    ] = False
    preview: Annotated[
        bool,
        _flag(
            "--preview",
            text="Write a small JPEG beside the output after each stage: OUTPUT.stage-0.jpg and "
            "so on, the longest side at most 1024 px. They stay. Default: none is written.",
        ),
    ] = False
    json_: Annotated[
        bool,
        _flag("--json", text="Print events as JSON lines, at the end a result object."),
    ] = False
    quiet: Annotated[
        bool,
        _flag("-q", "--quiet", text="No progress; print only the path of each finished image."),
    ] = False
