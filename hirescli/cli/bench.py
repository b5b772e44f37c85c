"""`hires bench`: measure whole runs, bands and decoders on this machine."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hirescli.errors import RequestError

if TYPE_CHECKING:
    from hirescli.evaluation.bands import Comparison
    from hirescli.evaluation.benchmark import ImageRun
    from hirescli.evaluation.case import Case
    from hirescli.evaluation.decoding import Decode

_PROMPT = "snowy mountains above a lake at sunset"
_SIZES = "512,1024,2048"
_SIZE = "1024"
_REPEATS = {"builtin": 2, "bands": 3}
_DTYPE = "float32"
_DTYPES = ("float32", "bfloat16")
# What each kind of measurement takes, beside --output and --json.
_TAKES = {
    "builtin": ("sizes", "repeat", "prompt"),
    "bands": ("size", "rows", "repeat", "dtype", "threads", "memory"),
    "vae": ("size", "rows", "dtype", "threads", "memory", "model"),
}


def _option(*names: str, metavar: str, text: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, show_default=False, **more)


def bench(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="What to measure: builtin, bands or vae.", show_default=False
        ),
    ],
    sizes: Annotated[
        str | None,
        _option(
            "--sizes",
            metavar="N,WxH,...",
            text=f"builtin: sizes in pixels, as --size takes them. Default: {_SIZES}.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        _option(
            "--size",
            metavar="N|WxH",
            text="bands, vae: size in pixels, multiples of 8; give it several times for several "
            f"sizes. Default: {_SIZE}.",
        ),
    ] = None,
    rows: Annotated[
        list[int] | None,
        _option(
            "--rows",
            metavar="N",
            min=1,
            max=1 << 20,
            text="bands, vae: band height in latent rows; for bands, give it several times to "
            "compare. Default: as the budget asks.",
        ),
    ] = None,
    repeat: Annotated[
        int | None,
        _option(
            "--repeat",
            metavar="N",
            min=1,
            max=100,
            text="builtin: runs of each size, the slowest counts, and their bytes are compared; "
            "bands: calls of each kind, in turns. 1 to 100. "
            f"Default: {_REPEATS['builtin']}, for bands {_REPEATS['bands']}.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        _option(
            "--dtype",
            metavar="|".join(_DTYPES),
            text=f"bands, vae: numbers to compute in. Default: {_DTYPE}.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        _option(
            "--threads",
            metavar="N",
            min=1,
            max=1024,
            text="bands, vae: CPU threads, 1 to 1024. Default: one per core.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        _option(
            "--memory",
            metavar="BYTES",
            text="bands, vae: memory the whole process may use when it computes in bands, such "
            "as 8GB, 8GiB or 500MB. Default: three quarters of the installed memory.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        _option(
            "--model",
            metavar="FOLDER",
            text="vae: an AutoencoderKL in diffusers layout. Default: one in the size of Stable "
            "Diffusion's with random weights.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        _option(
            "-p",
            "--prompt",
            metavar="TEXT",
            text=f'builtin: what the pictures show. Default: "{_PROMPT}".',
        ),
    ] = None,
    output: Annotated[
        Path | None,
        _option(
            "-o",
            "--output",
            metavar="FILE",
            text="Put the tables into this Markdown file too, in place of what the same kind of "
            "measurement wrote there; its other sections stay. Default: not written.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON; memory in bytes.")] = False,
) -> None:
    """Measure, and print Markdown tables with what was run and on what machine.

    builtin: whole pictures of several sizes, each in a process of its own. Seconds are of the
    whole command, loading included; peak memory is the process's, as the system measured it;
    both stand beside what the plan had said.

    bands: the built-in denoiser, and the decoder of an autoencoder in the size of Stable
    Diffusion's with random weights; the plain call against the banded one, in turns in one
    process: seconds, error, memory.

    vae: that decoder, or one from a folder; the whole-image decode, the one in bands, and
    diffusers' own tiling, each in a process of its own: error, seconds, memory.
    """  # fmt: skip
    said = {
        "sizes": sizes, "size": size, "rows": rows, "repeat": repeat, "dtype": dtype,
        "threads": threads, "memory": memory, "model": model, "prompt": prompt,
    }  # fmt: skip
    asked = {key: value for key, value in said.items() if value not in (None, [])}
    _refuse_others(what, asked)
    before = _page(output)
    if what == "builtin":
        text, facts = _builtin(
            sizes or _SIZES, repeat=repeat or _REPEATS[what], prompt=prompt or _PROMPT
        )
    else:
        request = _Request.of(asked)
        text, facts = _bands(request) if what == "bands" else _vae(request)
    if output is not None:
        _write(output, before, text)
    print(json.dumps(facts) if json_ else text)


def _refuse_others(what: str, asked: dict[str, Any]) -> None:
    """Refuse options that would have no effect."""
    if what not in _TAKES:
        raise RequestError(f'"{what}" cannot be measured; measure builtin, bands or vae')
    for key in asked:
        if key not in _TAKES[what]:
            takes = ", ".join(f"--{name}" for name in _TAKES[what])
            raise RequestError(
                f"--{key} has no effect on `hires bench {what}`, which takes {takes}; leave it out"
            )


# The page


def _page(output: Path | None) -> str:
    """What stands in the output now; read before hours are spent on measuring."""
    if output is None:
        return ""
    if not output.parent.is_dir():
        raise RequestError(f"output folder {output.parent} does not exist; make it first")
    try:
        return output.read_text(encoding="utf-8") if output.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"output {output} is no Markdown file to put tables into ({error}); "
            "give another with --output"
        ) from error


def _write(output: Path, before: str, text: str) -> None:
    from hirescli.evaluation.page import with_section

    partial = output.with_name(output.name + ".partial")
    partial.write_text(with_section(before, text), encoding="utf-8")
    os.replace(partial, output)


# Whole pictures


def _builtin(sizes: str, *, repeat: int, prompt: str) -> tuple[str, dict[str, Any]]:
    from hirescli.evaluation.benchmark import help_seconds, image_run
    from hirescli.evaluation.page import machine, section
    from hirescli.evaluation.tables import pictures_table
    from hirescli.units import parse_size

    asked = [size.strip() for size in sizes.split(",")]
    for size in asked:
        parse_size(size)
    fast = help_seconds()
    runs = [image_run(["-m", "builtin", "-p", prompt, "--size", s], repeat=repeat) for s in asked]
    ran = (
        f"{date.today().isoformat()}. Machine: {machine()}.\n"
        f'Prompt: "{prompt}". Runs of each size: {repeat}; the slowest counts.\n'
        f"`hires --help`: {fast:.2f} s (the fastest of five)."
    )
    text = section(
        "Pictures of the built-in model",
        command="hires bench builtin",
        paragraphs=[ran, *pictures_table(runs)],
    )
    facts = {"machine": machine(), "help_seconds": fast, "runs": [asdict(run) for run in runs]}
    return text, facts


# Bands and decoders


@dataclass(frozen=True)
class _Request:
    """What was asked of bands or decoders, resolved.

    Attributes:
        sizes_px: Width and height of each size.
        rows: Band heights in latent rows; None: as the engine chooses.
        words: The options as they were written, for the page.
    """

    sizes_px: tuple[tuple[int, int], ...]
    rows: tuple[int | None, ...]
    repeat: int
    dtype: str
    threads: int
    memory_bytes: int | None
    folder: Path | None
    words: str

    @classmethod
    def of(cls, asked: dict[str, Any]) -> _Request:
        from hirescli.planning.machine import Machine
        from hirescli.units import parse_bytes

        memory = asked.get("memory")
        return cls(
            sizes_px=tuple(_parsed(size) for size in asked.get("size", [_SIZE])),
            rows=tuple(asked.get("rows", [None])),
            repeat=asked.get("repeat", _REPEATS["bands"]),
            dtype=_checked_dtype(asked.get("dtype", _DTYPE)),
            threads=asked.get("threads", Machine.detect().cores),
            memory_bytes=None if memory is None else parse_bytes(memory),
            folder=asked.get("model"),
            words=_words(asked),
        )

    def case(self, component: str, size_px: tuple[int, int]) -> Case:
        """The plain call of a component at a size."""
        from hirescli.evaluation.case import Case
        from hirescli.evaluation.components import PX_PER_LATENT

        return Case(
            component=component,
            way="plain",
            latents=(size_px[1] // PX_PER_LATENT, size_px[0] // PX_PER_LATENT),
            dtype=self.dtype,
            threads=self.threads,
            memory_bytes=self.memory_bytes,
            rows=self.rows[0],
            folder=None if self.folder is None else str(self.folder),
        )


def _parsed(size: str) -> tuple[int, int]:
    from hirescli.units import parse_size

    width_px, height_px = parse_size(size)
    if width_px % 8 or height_px % 8:
        raise RequestError(f"size {size} has a side that is no multiple of 8 px, one latent")
    return width_px, height_px


def _checked_dtype(dtype: str) -> str:
    if dtype not in _DTYPES:
        raise RequestError(f'dtype "{dtype}" is none of {", ".join(_DTYPES)}')
    return dtype


def _words(asked: dict[str, Any]) -> str:
    pairs = [
        (key, each)
        for key, value in asked.items()
        for each in (value if isinstance(value, list) else [value])
    ]
    return "".join(f" --{key} {shlex.quote(str(each))}" for key, each in pairs)


def _bands(request: _Request) -> tuple[str, dict[str, Any]]:
    busy = _busy_cores()
    from hirescli.evaluation.bands import compare
    from hirescli.evaluation.components import PX_PER_LATENT

    figures = [
        figure
        for size_px in request.sizes_px
        for component in ("unet", "decoder")
        for figure in compare(
            request.case(component, size_px),
            request.rows,
            px_per_latent=PX_PER_LATENT,
            repeat=request.repeat,
        )
    ]
    calls = f"Calls of each kind: {request.repeat}."
    ratios = [{"best_ratio": f.best_ratio, "median_ratio": f.median_ratio} for f in figures]
    facts = [asdict(f) | ratio for f, ratio in zip(figures, ratios, strict=True)]
    return bands_section(figures, _ran("bands", request, busy, calls)), {
        **_common(request, busy), "repeat": request.repeat, "components": facts,
    }  # fmt: skip


def _vae(request: _Request) -> tuple[str, dict[str, Any]]:
    busy = _busy_cores()
    if len(request.rows) > 1:
        raise RequestError("`hires bench vae` takes one --rows; `hires bench bands` compares them")
    from hirescli.evaluation.components import check_folder
    from hirescli.evaluation.decoding import decodes

    if request.folder is not None:
        check_folder(request.folder)
    figures = [
        figure
        for size_px in request.sizes_px
        for figure in decodes(size_px, request.case("decoder", size_px))
    ]
    weights = (
        "Random weights, in the size of Stable Diffusion's autoencoder."
        if request.folder is None
        else f"Weights: {request.folder}."
    )
    return vae_section(figures, _ran("vae", request, busy, weights)), {
        **_common(request, busy), "decodes": [asdict(figure) for figure in figures],
    }  # fmt: skip


# What was run, on what


def _ran(what: str, request: _Request, busy: float, more: str) -> tuple[str, str]:
    """The command, and a paragraph on date, machine and how busy that was."""
    told = (
        f"{date.today().isoformat()}. Machine: {_machine()}.\n"
        f"Computed in {request.dtype} with {request.threads} threads. {more}\n"
        f"Other programs kept {busy:.1f} cores busy when it began"
    )
    noisy = "; times are noisy." if busy >= 0.25 else "."
    return f"hires bench {what}{request.words}", told + noisy


def _common(request: _Request, busy: float) -> dict[str, Any]:
    return {
        "machine": _machine(),
        "busy_cores": busy,
        "dtype": request.dtype,
        "threads": request.threads,
        "memory_bytes": request.memory_bytes,
    }


