"""`hires eval autoencoder`: how well pictures are given back, and how fast they are decoded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hirescli.cli.evaluating.shared import Json, Kinds, Threads, option, say
from hirescli.cli.options.machine import set_threads

_COUNT = 256
_DECODE_PX = 1024
_DTYPES = ("float32", "bfloat16")


def autoencoder(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Folders of pictures, or of training shards, each measured by itself.",
            show_default=False,
        ),
    ],
    vae: Annotated[
        Path | None,
        option(
            "--vae",
            metavar="FOLDER|STATE",
            text="Autoencoder: a folder in diffusers layout, or the file of a training of the "
            "built-in one. Default: the one that comes with hires.",
        ),
    ] = None,
    count: Annotated[
        int | None,
        option(
            "--count",
            metavar="N",
            min=2,
            text=f"Pictures of each folder, evenly chosen. Default: {_COUNT}, or all if there "
            "are fewer.",
        ),
    ] = None,
    kind: Kinds = None,
    decode_size: Annotated[
        int,
        option(
            "--decode-size",
            metavar="N",
            min=64,
            max=4096,
            text="Side of the square whose decoding is timed, in pixels, a multiple of 8. "
            f"Default: {_DECODE_PX}.",
        ),
    ] = _DECODE_PX,
    dtype: Annotated[
        str,
        option(
            "--dtype",
            metavar="|".join(_DTYPES),
            text="Numbers that the timed decoding computes in. Default: float32.",
        ),
    ] = _DTYPES[0],
    threads: Threads = None,
    json_: Json = False,
) -> None:
    """PSNR of an autoencoder on pictures it has not seen, and its decoder's time per megapixel.

    Pictures have 256 px, reconstructions are rounded to 8 bits. PSNR is of the mean square error
    over all pictures; the mean of each picture's own and the lowest stand beside.
    """
    from hirescli.errors import RequestError

    if dtype not in _DTYPES:
        raise RequestError(f'dtype "{dtype}" is none of {", ".join(_DTYPES)}')
    if decode_size % 8:
        raise RequestError(f"decode-size {decode_size} is no multiple of 8, one latent")
    import torch

    from hirescli.evaluation.page import busy_cores
    from hirescli.evaluation.picture_sets import some_of_set
    from hirescli.evaluation.reconstruction import (
        decode_seconds,
        load_autoencoder,
        reconstruction,
    )

    sets = [some_of_set(folder, count, most=_COUNT, kinds=kind or ()) for folder in folders]
    set_threads(threads)
    model = load_autoencoder(vae)
    measured = [reconstruction(model, pictures) for pictures in sets]
    busy = busy_cores()
    seconds = decode_seconds(model, decode_size, getattr(torch, dtype))
    used = torch.get_num_threads()
    found = {
        "sets": [
            {"folder": str(folder), **asdict(each)}
            for folder, each in zip(folders, measured, strict=True)
        ],
        "decode_seconds_per_megapixel": seconds,
        "dtype": dtype,
        "threads": used,
        "busy_cores": busy,
    }
    lines = [
        f"{folder}: {each.psnr_db:.2f} dB, mean of pictures {each.mean_psnr_db:.2f}, lowest "
        f"{each.worst_psnr_db:.2f}, {each.count} pictures"
        for folder, each in zip(folders, measured, strict=True)
    ]
    lines.append(
        f"decoding: {seconds:.3f} s per megapixel, {dtype}, {used} threads, while other programs "
        f"kept {busy:.1f} cores busy"
    )
    say(found, "\n".join(lines), as_json=json_)
