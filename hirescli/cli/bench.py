"""`hires bench`: measure whole runs, bands and decoders on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from hirescli.cli.benching.options import MeasuringOptions, WritingOptions
from hirescli.cli.options.request import takes


@takes(MeasuringOptions, WritingOptions)
def bench(
    options: MeasuringOptions,
    writing: WritingOptions,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="What to measure: builtin, batch, bands, vae, gpu, outputs, clear or findings.",
            show_default=False,
        ),
    ],
) -> None:
    """Measure, and print Markdown tables with what was run and on what machine.

    builtin: whole pictures of several sizes, each in a process of its own. Seconds are of the
    whole command, loading included; peak memory is the process's, as the system measured it;
    both stand beside what the plan had said.

    batch: 20 pictures of the built-in model in one batch, and what goes beside making them.

    bands: the built-in denoiser, and the decoder of an autoencoder in the size of Stable
    Diffusion's with random weights; the plain call against the banded one, in turns in one
    process: seconds, error, memory.

    vae: that decoder, or one from a folder; the whole-image decode, the one in bands, and
    diffusers' own tiling, each in a process of its own: error, seconds, memory.

    gpu: one denoising step and the decode of SDXL's real shape with random weights, whole and
    in bands within 8 GB, each in a process of its own: seconds, memory.

    outputs: every format of output made from a spool of --size, which is square here, each in a
    process of its own: seconds, memory.

    clear: full attention and CLEAR's with windows 8, 16 and 32, of one layer of FLUX's shape, in
    one process: seconds, operations, memory.

    findings: linear attention with parts of operator and loss left out, each distilled from the
    built-in model and compared with held-out renders at 1, 2 and 4 times the size of training.
    """
    from hirescli.cli.benching.running import run

    run(what, options, writing)
