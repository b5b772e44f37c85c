"""`hires export`: other formats of a finished picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hirescli.cli.json_errors import json_errors
from hirescli.cli.options.option import number, option, whole, words
from hirescli.cli.streams import write_line

_PANEL = "Options"


def export(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A TIFF of any size, of hires or another program, or a PNG, JPEG, WebP, AVIF or "
            "GIF; tiles are not read.",
            show_default=False,
        ),
    ],
    to: Annotated[
        list[Path],
        option(
            "--to",
            panel=_PANEL,
            metavar="PATH",
            text="File to write; give it several times. The suffix says the format: .tif, .png, "
            ".jpg, .webp, .avif, .print.tif, or for tiles .dzi, .zoomify, .iiif.",
        ),
    ],
    bits: Annotated[
        int | None,
        option(
            "--bits",
            panel=_PANEL,
            metavar="8|16",
            parser=whole,
            text="Bits of a sample. Default: those of FILE, or 8 where the format holds no more.",
        ),
    ] = None,
    compression: Annotated[
        str | None,
        option(
            "--compression",
            panel=_PANEL,
            metavar="NAME",
            text="Compression inside a TIFF: deflate, lzw, zstd, jpeg or none. Default: deflate.",
            autocompletion=words("deflate", "lzw", "zstd", "jpeg", "none"),
        ),
    ] = None,
    pyramid: Annotated[
        str | None,
        option(
            "--pyramid",
            panel=_PANEL,
            metavar="pages|subifd|none",
            text="How a TIFF holds its smaller levels. Default: pages.",
            autocompletion=words("pages", "subifd", "none"),
        ),
    ] = None,
    tile_px: Annotated[
        int | None,
        option(
            "--tile",
            "--tile-px",
            panel=_PANEL,
            metavar="PX",
            parser=whole,
            text="Side of tiles in pixels, a multiple of 16 from 64 to 4096. Default: 512.",
        ),
    ] = None,
    tile_format: Annotated[
        str | None,
        option(
            "--tile-format",
            panel=_PANEL,
            metavar="jpeg|png",
            text="Format of tiles. Default: jpeg.",
            autocompletion=words("jpeg", "png"),
        ),
    ] = None,
    quality: Annotated[
        int | None,
        option(
            "--quality",
            panel=_PANEL,
            metavar="N",
            parser=whole,
            text="Quality of JPEG, WebP and AVIF, 1 to 100. Default: 90.",
        ),
    ] = None,
    dpi: Annotated[
        float | None,
        option(
            "--dpi",
            panel=_PANEL,
            metavar="X",
            parser=number,
            text="Resolution for printing, in pixels per inch. Default: that of FILE, else 300.",
        ),
    ] = None,
    no_metadata: Annotated[
        bool,
        typer.Option("--no-metadata", help="Leave recipe, prompt and XMP behind."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[
        bool,
        typer.Option("-q", "--quiet", help="No progress; print only the path of each file."),
    ] = False,
) -> None:
    """Write a finished picture in other formats, without loading a model.

    Pixels are taken as they are, in bands; what the picture says about itself goes with them. All
    files are whole before the first gets its name.
    """
    from hirescli.cli.progress import listening
    from hirescli.output.export import export, prepared

    said = {
        "bits": bits, "compression": compression, "pyramid": pyramid, "tile_px": tile_px,
        "tile_format": tile_format, "quality": quality, "dpi": dpi,
        "metadata": False if no_metadata else None,
    }  # fmt: skip
    choices: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    with json_errors(json_):
        asked = prepared(file, to, choices, overwrite=overwrite)
        # With --json stdout gets one object and stderr nothing.
        with listening(as_json=False, quiet=quiet or json_, at_first=f"reading {file}") as tell:
            finished = export(asked, overwrite=overwrite, listener=tell)
    if json_:
        keys = ("bytes", "seconds", "sha256")
        files = [
            {"path": str(each.path), "format": asked.recipes[each.path].format}
            | {key: getattr(each, key) for key in keys}
            for each in finished
        ]
        write_line(json.dumps({"source": str(file), "files": files}))
        return
    for each in finished:
        write_line(str(each.path))
