"""The options of `hires bench`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from hirescli.cli.options.option import option
from hirescli.evaluation.request import DTYPE, DTYPES, REPEAT, SIZE

PROMPT = "snowy mountains above a lake at sunset"
PICTURE_SIZES = "512,1024,2048"
BATCH_SIZES = "128,256"
PICTURE_REPEAT = 2


@dataclass(frozen=True)
class MeasuringOptions:
    """What is measured; every kind of measurement takes some of these."""

    sizes: Annotated[
        str | None,
        option(
            "--sizes",
            metavar="N,WxH,...",
            text="builtin, batch, gpu: sizes in pixels; builtin and batch take them as --size "
            f"does. Default: {PICTURE_SIZES}; for batch {BATCH_SIZES}, for gpu 1024 to 16384.",
        ),
    ] = None
    size: Annotated[
        list[str] | None,
        option(
            "--size",
            metavar="N|WxH",
            text="bands, vae, outputs: size in pixels, multiples of 8; give it several times for "
            f"several sizes. Default: {SIZE}.",
        ),
    ] = None
    rows: Annotated[
        list[int] | None,
        option(
            "--rows",
            metavar="N",
            min=1,
            max=1 << 20,
            text="bands, vae: band height in latent rows; for bands, give it several times to "
            "compare. Default: as the budget asks.",
        ),
    ] = None
    repeat: Annotated[
        int | None,
        option(
            "--repeat",
            metavar="N",
            min=1,
            max=100,
            text="builtin: runs of each size, the slowest counts, and their bytes are compared; "
            "bands: calls of each kind, in turns. 1 to 100. "
            f"Default: {PICTURE_REPEAT}, for bands {REPEAT}.",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            metavar="|".join(DTYPES),
            text=f"bands, vae, clear: numbers to compute in. Default: {DTYPE}; for clear on cuda "
            "bfloat16.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        option(
            "--threads",
            metavar="N",
            min=1,
            max=1024,
            text="bands, vae, clear, findings: CPU threads, 1 to 1024. Default: one per core.",
        ),
    ] = None
    memory: Annotated[
        str | None,
        option(
            "--memory",
            metavar="BYTES",
            text="bands, vae: memory the whole process may use when it computes in bands, such "
            "as 8GB, 8GiB or 500MB. Default: three quarters of the installed memory.",
        ),
    ] = None
    model: Annotated[
        Path | None,
        option(
            "--model",
            metavar="FOLDER",
            text="vae: an AutoencoderKL in diffusers layout. Default: one in the size of Stable "
            "Diffusion's with random weights. findings: what `hires train export` wrote. Default: "
            "the built-in model.",
        ),
    ] = None
    data: Annotated[
        Path | None,
        option(
            "--data",
            metavar="FOLDER",
            text="findings: shards of `hires train render` to learn from. Needed.",
        ),
    ] = None
    held_out: Annotated[
        Path | None,
        option(
            "--held-out",
            metavar="FOLDER",
            text="findings: shards rendered with --held-out, to compare with. Needed.",
        ),
    ] = None
    work: Annotated[
        Path | None,
        option(
            "--work",
            metavar="FOLDER",
            text="findings: where finished pieces are kept; the same command goes on from them. "
            "Needed.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        option(
            "--steps",
            metavar="N",
            min=1,
            text="findings: steps of each distillation. Default: 200.",
        ),
    ] = None
    pictures: Annotated[
        int | None,
        option(
            "--pictures",
            metavar="N",
            min=2,
            text="findings: that each variant draws at each size. Default: 96.",
        ),
    ] = None
    device: Annotated[
        str | None,
        option(
            "--device",
            metavar="cuda|cpu",
            text="gpu: cpu tries it with a tiny model. Default: cuda. clear: where to compute. "
            "Default: cuda where there is a GPU.",
        ),
    ] = None
    grids: Annotated[
        str | None,
        option(
            "--grids",
            metavar="N,...",
            text="clear: sides of square grids of tokens, 16 px each, 32 or more. Default: 64,128 "
            "on a CPU (1024 and 2048 px), 64,128,256,512 on a GPU.",
        ),
    ] = None
    prompt: Annotated[
        str | None,
        option(
            "-p",
            "--prompt",
            metavar="TEXT",
            text=f'builtin: what the pictures show. Default: "{PROMPT}".',
        ),
    ] = None

    def asked(self) -> dict[str, Any]:
        """What was given, by the names of the options without their dashes in front."""
        said = {each.name.replace("_", "-"): getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in said.items() if value not in (None, [])}


@dataclass(frozen=True)
class WritingOptions:
    """Where the figures go."""

    output: Annotated[
        Path | None,
        option(
            "-o",
            "--output",
            metavar="FILE",
            text="Put the tables into this Markdown file too, in place of what the same kind of "
            "measurement wrote there; its other sections stay. Default: not written.",
        ),
    ] = None
    chart: Annotated[
        Path | None,
        option(
            "--chart",
            metavar="PNG",
            text="Draw the figures into this PNG file too. Default: not drawn.",
        ),
    ] = None
    json_: Annotated[bool, typer.Option("--json", help="Print JSON; memory in bytes.")] = False
