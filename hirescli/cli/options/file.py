"""Options of the output file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hirescli.cli.options.option import number, option, whole, words

_PANEL = "Output file"


@dataclass(frozen=True)
class FileOptions:
    """The output file."""

    output: Annotated[
        str | None,
        option(
            "-o",
            "--output",
            panel=_PANEL,
            metavar="FILE",
            text="File to write: .tif, .tiff, .png, .jpg or .jpeg; {seed} in it stands for the "
            "seed; a folder gets the default name. Default: made from prompt and seed, here.",
        ),
    ] = None
    format: Annotated[
        str | None,
        option(
            "--format",
            panel=_PANEL,
            metavar="tiff|png|jpeg",
            text="Format of the file: tiff is a tiled BigTIFF with a pyramid of pages; jpeg holds "
            "at most 65500 px a side. Default: by the suffix of --output, else tiff.",
            autocompletion=words("tiff", "png", "jpeg"),
        ),
    ] = None
    tile: Annotated[
        int | None,
        option(
            "--tile",
            panel=_PANEL,
            metavar="PX",
            parser=whole,
            text="Side of the TIFF's tiles in pixels, a multiple of 16 from 64 to 4096. "
            "Default: 512.",
        ),
    ] = None
    compression: Annotated[
        str | None,
        option(
            "--compression",
            panel=_PANEL,
            metavar="deflate|lzw|jpeg|none",
            text="Compression inside the TIFF; jpeg loses detail, the others none. "
            "Default: deflate.",
            autocompletion=words("deflate", "lzw", "jpeg", "none"),
        ),
    ] = None
    quality: Annotated[
        int | None,
        option(
            "--quality",
            panel=_PANEL,
            metavar="N",
            parser=whole,
            text="Quality of JPEG, in files and in TIFF tiles, 1 to 100. Default: 90.",
        ),
    ] = None
    dpi: Annotated[
        float | None,
        option(
            "--dpi",
            panel=_PANEL,
            metavar="X",
            parser=number,
            text="Resolution for printing, in pixels per inch, 1 to 10000. Default: 300.",
        ),
    ] = None
    metadata: Annotated[
        bool | None,
        option(
            "--metadata/--no-metadata",
            panel=_PANEL,
            metavar=None,
            text="Whether recipe, prompt and XMP go into the file; colour profile and resolution "
            "always do. Default: they do.",
        ),
    ] = None
