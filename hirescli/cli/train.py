"""`hires train`: make the built-in model from nothing. Needs the extra `train`."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Annotated

import typer

from hirescli.cli.options.machine import set_threads
from hirescli.cli.options.option import paragraphs
from hirescli.cli.streams import json_visible, visible
from hirescli.errors import RequestError

app = typer.Typer(
    help="Make the built-in model from nothing: render pictures, train its parts, export them.",
    no_args_is_help=True,
)
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Shards = Annotated[
    int,
    typer.Option(min=0, metavar="N", help="Shards of this kind, 256 pictures each, from 0 on."),
]


def render(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the shards go.")],
    wide: _Shards = 48,
    crop: _Shards = 12,
    close: _Shards = 10,
    detail: _Shards = 10,
    held_out: Annotated[
        bool,
        typer.Option("--held-out", help="Render pictures that training never sees, to test with."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, metavar="N", help="Processes, 1 to 1024. Default: one per core."
        ),
    ] = None,
    json_: _Json = False,
) -> None:
    """Render captioned pictures into shards. Shards that are there already are left as they are.

    The same kind and number give the same pictures.
    """
    _need_scipy()
    from hirescli.training.dataset import render_shards

    counts = {"wide": wide, "crop": crop, "close": close, "detail": detail}
    counts = {kind: count for kind, count in counts.items() if count}
    done = render_shards(folder, counts, workers=workers or os.cpu_count() or 1, held_out=held_out)
    for kind, number in done:
        if json_:
            _log(json.dumps({"kind": kind, "number": number}))
        else:
            _log(f"{kind} {number}")


def photographs(
    images: Annotated[
        Path,
        typer.Argument(metavar="IMAGES", help="Folder of photographs, with all folders below it."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", help="Where the shards go.")],
    held_out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Where shards of the photographs go that training never sees."
        ),
    ],
    squares: Annotated[
        int,
        typer.Option(min=1, max=1000, metavar="N", help="Squares of one photograph, at most."),
    ] = 8,
    json_: _Json = False,
) -> None:
    """Cut photographs into shards of the kind photo, for the autoencoder beside renders.

    Squares of 256 px are cut at the photograph's own size, half of it, and so on. One file in
    ten is held out, told by its name. Lines of NAME.txt beside NAME.jpg are its captions. Shards
    of photographs that are there are replaced.
    """
    from hirescli.training.photographs import check, split, write_shards

    if held_out.resolve() == folder.resolve():
        raise RequestError(
            f"held-out photographs cannot go to {folder}, where those to train on go; give "
            "another --held-out"
        )
    files = split(images)
    check([*files.trained, *files.held_out])
    found = {
        "photographs": len(files.trained),
        "squares": write_shards(files.trained, folder, most=squares),
        "held_out_photographs": len(files.held_out),
        "held_out_squares": write_shards(files.held_out, held_out, most=squares),
        "held_out": [path.relative_to(images).as_posix() for path in files.held_out],
    }
    if json_:
        _log(json_visible(json.dumps(found)))
    else:
        _log(
            f"{found['squares']} squares of {found['photographs']} photographs; held out: "
            f"{found['held_out_squares']} of {found['held_out_photographs']}"
        )


_Lines = Annotated[
    bool,
    typer.Option("--json", help="Print a line of JSON after every save. Default: in words."),
]
_Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder of shards from `hires train render`.")
]
_State = Annotated[
    Path, typer.Argument(metavar="STATE", help="The training's file; it goes on from it.")
]
_Steps = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Length of the whole schedule in steps, resumed parts included.",
    ),
]
_Minutes = Annotated[
    float | None,
    typer.Option(min=0, metavar="M", help="Save and stop after so long. Default: no limit."),
]
_Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, metavar="N", help="CPU threads, 1 to 1024. Default: all cores."),
]


def autoencoder(
    data: _Data,
    state: _State,
    held_out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder of shards rendered with --held-out, to test on."),
    ],
    steps: _Steps = 1_900,
    minutes: _Minutes = None,
    threads: _Threads = None,
    json_: _Lines = False,
) -> None:
    """Train the autoencoder, or go on with it. One line after every save.

    A fifth of what it sees is photographs, if DATA has shards from `hires train photographs`.
    Beside STATE, as STATE.png, every save leaves held-out pictures, each followed by its
    reconstruction. A training that is stopped or killed goes on from its last save when called
    again.
    """
    from hirescli.training.autoencoder import AutoencoderRun, train

    run = AutoencoderRun(steps=steps)
    set_threads(threads)
    log = _log if json_ else _log_in_words
    train(data, state, run, held_out=held_out, log=log, stop_after_seconds=_seconds(minutes))


def denoiser(
    data: _Data,
    state: _State,
    autoencoder: Annotated[
        Path,
        typer.Option(
            metavar="STATE|FOLDER", help="The autoencoder: its training's file, or its export."
        ),
    ],
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="STATE|FOLDER",
            help="Weights to begin at: another training's file, or the unet folder of an export. "
            "Default: fresh ones. Of no effect once there is a STATE.",
        ),
    ] = None,
    steps: _Steps = 6_000,
    learning_rate: Annotated[
        float,
        typer.Option(
            min=1e-7,
            max=1e-2,
            metavar="R",
            help="Of AdamW, at its peak, which 200 steps lead to, or half of them.",
        ),
    ] = 6e-4,
    batch_scale: Annotated[
        int,
        typer.Option(
            min=1, max=64, metavar="N", help="Multiply every batch, for a GPU that fills slowly."
        ),
    ] = 1,
    minutes: _Minutes = None,
    threads: _Threads = None,
    json_: _Lines = False,
) -> None:
    """Train the denoiser, or go on with it. One line after every save.

    Beside STATE, as STATE.png, every save leaves samples of fixed prompts. A training that is
    stopped or killed goes on from its last save when called again.
    """
    from hirescli.training.autoencoder import load
    from hirescli.training.denoiser import DenoiserRun, train

    run = DenoiserRun(steps=steps, learning_rate=learning_rate, batch_scale=batch_scale)
    set_threads(threads)
    train(
        data,
        load(autoencoder),
        state,
        run,
        start=start,
        log=_log if json_ else _log_in_words,
        stop_after_seconds=_seconds(minutes),
    )


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the weights go.")],
    autoencoder: Annotated[
        Path,
        typer.Option(
            metavar="STATE|FOLDER", help="The autoencoder: its training's file, or its export."
        ),
    ],
    denoiser: Annotated[
        Path,
        typer.Option(
            metavar="STATE|FOLDER", help="The denoiser: its training's file, or its export."
        ),
    ],
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="LinFusion weights that were distilled from this denoiser. Default: untrained "
            "ones, which a distillation starts from.",
        ),
    ] = None,
    json_: _Json = False,
) -> None:
    """Write the averaged weights of both trainings, in half precision and diffusers layout."""
    from hirescli.training.export import export as write

    write(autoencoder=autoencoder, denoiser=denoiser, folder=folder, adapter=adapter)
    print(json_visible(json.dumps({"folder": str(folder)})) if json_ else visible(str(folder)))


for name, command in (
    ("render", render),
    ("photographs", photographs),
    ("autoencoder", autoencoder),
    ("denoiser", denoiser),
    ("export", export),
):
    app.command(name, help=paragraphs(command.__doc__))(command)


def _log(line: str) -> None:
    print(line, flush=True)


def _log_in_words(line: str) -> None:
    """From JSON: "step 100, loss 0.12, seconds 30"; of a note only what it says."""
    said = json.loads(line).items()
    _log(", ".join(value if key == "note" else f"{key} {value}" for key, value in said))


def _seconds(minutes: float | None) -> float:
    return math.inf if minutes is None else 60 * minutes


def _need_scipy() -> None:
    from importlib.util import find_spec

    if find_spec("scipy") is None:
        raise RequestError('training needs scipy; install it with: pip install ".[train]"')
