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
            text="File to write; its suffix says the format: .tif, .png, .jpg, .webp, .avif, "
            ".print.tif, or for tiles .dzi, .zoomify, .iiif. {seed} in it stands for the seed; a "
            "folder gets the default name. Default: made from prompt and seed, here.",
        ),
    ] = None
    format: Annotated[
        str | None,
        option(
            "--format",
            panel=_PANEL,
            metavar="NAME",
            text="Format of the file: tiff (a tiled BigTIFF with a pyramid), png, jpeg (at most "
            "65500 px a side), webp (16383), avif (16384), tiles (many small files to publish), "
            "print (a classic TIFF for print shops). Default: by the suffix of --output, else "
            "tiff.",
            autocompletion=words("tiff", "png", "jpeg", "webp", "avif", "tiles", "print"),
        ),
    ] = None
    bits: Annotated[
        int | None,
        option(
            "--bits",
            panel=_PANEL,
            metavar="8|16",
            parser=whole,
            text="Bits of a sample; 16 are rounded from the decoder's floats, in TIFF, PNG and "
            "tiles of PNG. Default: 8.",
        ),
    ] = None
    tile: Annotated[
        int | None,
        option(
            "--tile",
            "--tile-px",
            panel=_PANEL,
            metavar="PX",
            parser=whole,
            text="Side of the tiles of TIFF and of tiles in pixels, a multiple of 16 from 64 to "
            "4096. Default: 512.",
        ),
    ] = None
    tile_layout: Annotated[
        str | None,
        option(
            "--tile-layout",
            panel=_PANEL,
            metavar="dz|zoomify|iiif3",
            text="How tiles are named: dz is Deep Zoom. Default: by the suffix of --output, else "
            "dz.",
            autocompletion=words("dz", "zoomify", "iiif3"),
        ),
    ] = None
    tile_format: Annotated[
        str | None,
        option(
            "--tile-format",
            panel=_PANEL,
            metavar="jpeg|png",
            text="Format of tiles. Default: jpeg.",
            autocompletion=words("jpeg", "png"),
        ),
    ] = None
    pyramid: Annotated[
        str | None,
        option(
            "--pyramid",
            panel=_PANEL,
            metavar="pages|subifd|none",
            text="How the TIFF holds its smaller levels: as pages, which most readers see, or as "
            "sub-directories, or not at all. Default: pages.",
            autocompletion=words("pages", "subifd", "none"),
        ),
    ] = None
    compression: Annotated[
        str | None,
        option(
            "--compression",
            panel=_PANEL,
            metavar="NAME",
            text="Compression inside the TIFF: deflate, lzw, zstd (some readers do not know it), "
            "none, or jpeg, which loses detail. Default: deflate.",
            autocompletion=words("deflate", "lzw", "zstd", "jpeg", "none"),
        ),
    ] = None
    quality: Annotated[
        int | None,
        option(
            "--quality",
            panel=_PANEL,
            metavar="N",
            parser=whole,
            text="Quality of JPEG, WebP and AVIF, in files and in tiles, 1 to 100. Default: 90.",
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


@dataclass(frozen=True)
class AlsoOptions:
    """Further files of the same picture."""

    also: Annotated[
        list[str] | None,
        option(
            "--also",
            panel=_PANEL,
            metavar="FILE",
            text="A further file of the picture, named as --output is; give it several times. It "
            "stands before the output does. Default: none.",
        ),
    ] = None
