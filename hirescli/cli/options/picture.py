"""Options that say what the picture shows, and how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hirescli.cli.options.option import option, whole

_PANEL = "Picture"


def preset_names(incomplete: str) -> list[str]:
    """Names of the shipped presets, for shell completion."""
    from hirescli import presets

    return [name for name in presets.names() if name.startswith(incomplete)]


@dataclass(frozen=True)
class PictureOptions:
    """What the picture shows."""

    prompt: Annotated[
        str | None,
        option(
            "-p",
            "--prompt",
            panel=_PANEL,
            metavar="TEXT",
            text="What the picture shows; - reads it from stdin. Default: as preset or recipe.",
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        option(
            "-n",
            "--negative-prompt",
            panel=_PANEL,
            metavar="TEXT",
            text="What the picture shall not show. Default: empty.",
        ),
    ] = None
    size: Annotated[
        str | None,
        option(
            "--size",
            panel=_PANEL,
            metavar="N|WxH",
            text="Size in pixels: 2048 for a square, or 2048x1024; sides are multiples of what "
            "the model needs (8 for `builtin`), at most 1048576 px, the long one at most 4 times "
            "the short one. Default: the model's native size.",
        ),
    ] = None
    width: Annotated[
        int | None,
        option(
            "-W",
            "--width",
            panel=_PANEL,
            metavar="PX",
            parser=whole,
            text="Width in pixels, with --height in place of --size. Default: see --size.",
        ),
    ] = None
    height: Annotated[
        int | None,
        option(
            "-H",
            "--height",
            panel=_PANEL,
            metavar="PX",
            parser=whole,
            text="Height in pixels, with --width in place of --size. Default: see --size.",
        ),
    ] = None
    print_: Annotated[
        str | None,
        option(
            "--print",
            panel=_PANEL,
            metavar="WxH{mm,cm,in}@DPI",
            text="Size on paper in place of --size and --dpi, such as 60x40cm@300; the pixels are "
            "the nearest multiples of 8 that cover it. A .tif is then a print file. "
            "Default: none.",
        ),
    ] = None
    seed: Annotated[
        list[int] | None,
        option(
            "-s",
            "--seed",
            panel=_PANEL,
            metavar="N",
            parser=whole,
            text="Seed of the noise, 0 to 9223372036854775807; give it several times for several "
            "images, the model is loaded once. The same seed gives the same bytes. Default: 0.",
        ),
    ] = None
    preset: Annotated[
        str | None,
        option(
            "--preset",
            panel=_PANEL,
            metavar="NAME|FILE",
            text="Start from a partial recipe: a name of `hires presets list` or a .toml file; "
            "other options win over it. Default: none.",
            autocompletion=preset_names,
        ),
    ] = None
    recipe: Annotated[
        Path | None,
        option(
            "--recipe",
            panel=_PANEL,
            metavar="FILE",
            text="Repeat an image: its recipe (.json), or the image itself (TIFF, PNG, JPEG); the "
            "preset and other options win over it. Default: none.",
        ),
    ] = None
