"""Options of a run: memory, bands, decoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from hirescli.cli.options.option import option, whole, words

_PANEL = "Run"


@dataclass(frozen=True)
class RunOptions:
    """How the run goes."""

    device: Annotated[
        str | None,
        option(
            "--device",
            panel=_PANEL,
            metavar="cpu|cuda",
            text="Where pictures are computed. Default: the first GPU that nvidia-smi names, "
            "else cpu.",
            autocompletion=words("cpu", "cuda"),
        ),
    ] = None
    memory: Annotated[
        str | None,
        option(
            "--memory",
            panel=_PANEL,
            metavar="BYTES",
            text="Memory the whole process may use, or with --device cuda the GPU's, such as "
            "8GB, 8GiB or 500MB; with more, less is spilled. Default: what the model takes and "
            "170 MB to work in; of a GPU three quarters.",
        ),
    ] = None
    host_memory: Annotated[
        str | None,
        option(
            "--host-memory",
            panel=_PANEL,
            metavar="BYTES",
            text="Host memory for values that find no room on a GPU; on a CPU it says nothing. "
            "Default: three quarters of the installed memory, less what the model takes there.",
        ),
    ] = None
    spill: Annotated[
        Path | None,
        option(
            "--spill",
            panel=_PANEL,
            metavar="DIR",
            text="Folder for values that find no room in memory; a fast disk helps. Default: the "
            "run's own folder beside the output.",
        ),
    ] = None
    rows: Annotated[
        int | None,
        option(
            "--rows",
            panel=_PANEL,
            metavar="N",
            parser=whole,
            text="Band height that pictures are computed in, in latent rows, 1 to 4096. "
            "Default: from the size and the memory.",
        ),
    ] = None
    vae_mode: Annotated[
        str | None,
        option(
            "--vae-mode",
            panel=_PANEL,
            metavar="MODE",
            text="How latents are decoded: banded is exact; tiled is diffusers' own tiling, which "
            "blends tiles, for comparison. Default: banded.",
            autocompletion=words("banded", "tiled"),
        ),
    ] = None
    vae_attention: Annotated[
        str | None,
        option(
            "--vae-attention",
            panel=_PANEL,
            metavar="KIND",
            text="Of a decoder's middle block above 512x512 latents: pooled lets it attend to "
            "averages, exact to everything, in quadratic time. Default: pooled.",
            autocompletion=words("pooled", "exact"),
        ),
    ] = None
