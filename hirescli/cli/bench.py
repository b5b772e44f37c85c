"""`hires bench`: measure whole runs, bands and decoders on this machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hirescli.errors import RequestError
from hirescli.evaluation.request import DTYPE, DTYPES, REPEAT, SIZE, Request

_PROMPT = "snowy mountains above a lake at sunset"
_SIZES = "512,1024,2048"
_BATCH_SIZES = "128,256"
_REPEAT = 2
# What each kind of measurement takes, beside --output, --chart and --json.
_TAKES = {
    "builtin": ("sizes", "repeat", "prompt"),
    "batch": ("sizes",),
    "bands": ("size", "rows", "repeat", "dtype", "threads", "memory"),
    "vae": ("size", "rows", "dtype", "threads", "memory", "model"),
    "gpu": ("sizes", "device"),
    "outputs": ("size",),
    "clear": ("grids", "device", "dtype", "threads"),
    "findings": ("data", "held-out", "work", "model", "steps", "pictures", "threads"),
}


# The page, the same for JSON, and what draws it.
_Measured = tuple[str, dict[str, Any], Callable[[Path], None]]


def _option(*names: str, metavar: str, text: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, show_default=False, **more)


def bench(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="What to measure: builtin, batch, bands, vae, gpu, outputs, clear or findings.",
            show_default=False,
        ),
    ],
    sizes: Annotated[
        str | None,
        _option(
            "--sizes",
            metavar="N,WxH,...",
            text="builtin, batch, gpu: sizes in pixels; builtin and batch take them as --size "
            f"does. Default: {_SIZES}; for batch {_BATCH_SIZES}, for gpu 1024 to 16384.",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        _option(
            "--size",
            metavar="N|WxH",
            text="bands, vae, outputs: size in pixels, multiples of 8; give it several times for "
            f"several sizes. Default: {SIZE}.",
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
            f"Default: {_REPEAT}, for bands {REPEAT}.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        _option(
            "--dtype",
            metavar="|".join(DTYPES),
            text=f"bands, vae, clear: numbers to compute in. Default: {DTYPE}; for clear on cuda "
            "bfloat16.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        _option(
            "--threads",
            metavar="N",
            min=1,
            max=1024,
            text="bands, vae, clear, findings: CPU threads, 1 to 1024. Default: one per core.",
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
            "Diffusion's with random weights. findings: what `hires train export` wrote. Default: "
            "the built-in model.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        _option(
            "--data",
            metavar="FOLDER",
            text="findings: shards of `hires train render` to learn from. Needed.",
        ),
    ] = None,
    held_out: Annotated[
        Path | None,
        _option(
            "--held-out",
            metavar="FOLDER",
            text="findings: shards rendered with --held-out, to compare with. Needed.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        _option(
            "--work",
            metavar="FOLDER",
            text="findings: where finished pieces are kept; the same command goes on from them. "
            "Needed.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        _option(
            "--steps",
            metavar="N",
            min=1,
            text="findings: steps of each distillation. Default: 200.",
        ),
    ] = None,
    pictures: Annotated[
        int | None,
        _option(
            "--pictures",
            metavar="N",
            min=2,
            text="findings: that each variant draws at each size. Default: 96.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        _option(
            "--device",
            metavar="cuda|cpu",
            text="gpu: cpu tries it with a tiny model. Default: cuda. clear: where to compute. "
            "Default: cuda where there is a GPU.",
        ),
    ] = None,
    grids: Annotated[
        str | None,
        _option(
            "--grids",
            metavar="N,...",
            text="clear: sides of square grids of tokens, 16 px each, 32 or more. Default: 64,128 "
            "on a CPU (1024 and 2048 px), 64,128,256,512 on a GPU.",
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
    chart: Annotated[
        Path | None,
        _option(
            "--chart",
            metavar="PNG",
            text="Draw the figures into this PNG file too. Default: not drawn.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON; memory in bytes.")] = False,
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
    """  # fmt: skip
    said = {
        "sizes": sizes, "size": size, "rows": rows, "repeat": repeat, "dtype": dtype,
        "threads": threads, "memory": memory, "model": model, "prompt": prompt,
        "device": device, "grids": grids, "data": data, "held-out": held_out, "work": work,
        "steps": steps, "pictures": pictures,
    }  # fmt: skip
    asked = {key: value for key, value in said.items() if value not in (None, [])}
    _refuse_others(what, asked)
    before = _page(output)
    if chart is not None:
        from hirescli.evaluation.charts import check_target

        check_target(chart)
    measures = {
        "builtin": _builtin, "batch": _batch, "bands": _bands, "vae": _vae, "gpu": _gpu,
        "outputs": _outputs, "clear": _clear, "findings": _findings,
    }  # fmt: skip
    text, facts, draw = measures[what](asked)
    if output is not None:
        _write(output, before, text)
    if chart is not None:
        draw(chart)
    if json_:
        print(json.dumps(facts))
    else:
        _print(text)


def _refuse_others(what: str, asked: dict[str, Any]) -> None:
    """Refuse options that would have no effect."""
    if what not in _TAKES:
        raise RequestError(f'"{what}" cannot be measured; measure one of {", ".join(_TAKES)}')
    for key in asked:
        if key not in _TAKES[what]:
            takes = ", ".join(f"--{name}" for name in _TAKES[what])
            raise RequestError(
                f"--{key} has no effect on `hires bench {what}`, which takes {takes}; leave it out"
            )


def _print(text: str) -> None:
    """Tables for people on a terminal, Markdown for everything else."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.markdown import Markdown

    from hirescli.cli.render import console

    console().print(Markdown(text))


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


def _builtin(asked: dict[str, Any]) -> _Measured:
    from hirescli.evaluation.benchmark import help_seconds, image_run
    from hirescli.evaluation.charts import pictures_chart
    from hirescli.evaluation.page import machine, section
    from hirescli.evaluation.tables import pictures_table
    from hirescli.units import parse_size

    repeat, prompt = asked.get("repeat", _REPEAT), asked.get("prompt", _PROMPT)
    sizes = [size.strip() for size in asked.get("sizes", _SIZES).split(",")]
    for size in sizes:
        parse_size(size)
    fast = help_seconds()
    runs = [image_run(["-m", "builtin", "-p", prompt, "--size", s], repeat=repeat) for s in sizes]
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
    return text, facts, partial(pictures_chart, runs=runs)


def _batch(asked: dict[str, Any]) -> _Measured:
    from hirescli.evaluation.batching import JOBS, batch_run
    from hirescli.evaluation.charts import batch_chart
    from hirescli.evaluation.page import machine, section
    from hirescli.evaluation.tables import batch_table
    from hirescli.units import parse_size

    sizes = [parse_size(size.strip()) for size in asked.get("sizes", _BATCH_SIZES).split(",")]
    runs = [batch_run(*size) for size in sizes]
    text = section(
        "Batches of the built-in model",
        command="hires bench batch" + "".join(f" --{key} {value}" for key, value in asked.items()),
        paragraphs=[
            f"{date.today().isoformat()}. Machine: {machine()}. Jobs: {JOBS}.",
            *batch_table(runs),
        ],
    )
    rows = [asdict(run) | {"outside_share": run.outside_share} for run in runs]
    return text, {"machine": machine(), "runs": rows}, partial(batch_chart, runs=runs)


# Bands and decoders


def _bands(asked: dict[str, Any]) -> _Measured:
    from hirescli.evaluation.charts import bands_chart
    from hirescli.evaluation.page import section
    from hirescli.evaluation.tables import bands_table

    request = Request.of(asked)
    ran = request.told(f"Calls of each kind: {request.repeat}.")
    from hirescli.evaluation.bands import compare

    figures = [
        figure
        for size_px in request.sizes_px
        for component in ("unet", "decoder")
        for figure in compare(
            request.case(component, size_px), request.rows, repeat=request.repeat
        )
    ]
    text = section(
        "Bands against plain calls",
        command=f"hires bench bands{request.words}",
        paragraphs=[ran, *bands_table(figures)],
    )
    ratios = [{"best_ratio": f.best_ratio, "median_ratio": f.median_ratio} for f in figures]
    components = [asdict(f) | ratio for f, ratio in zip(figures, ratios, strict=True)]
    facts = request.facts() | {"repeat": request.repeat, "components": components}
    return text, facts, partial(bands_chart, figures=figures)


def _vae(asked: dict[str, Any]) -> _Measured:
    from hirescli.evaluation.charts import decodes_chart
    from hirescli.evaluation.page import section
    from hirescli.evaluation.tables import decodes_table

    request = Request.of(asked)
    if len(request.rows) > 1:
        raise RequestError("`hires bench vae` takes one --rows; `hires bench bands` compares them")
    from hirescli.evaluation.decoding import decodes
    from hirescli.evaluation.folder import check_folder

    if request.folder is not None:
        check_folder(request.folder)
    ran = request.told(f"Weights: {request.folder or 'random, in the size of Stable Diffusion'}.")
    figures = [
        figure
        for size_px in request.sizes_px
        for figure in decodes(request.case("decoder", size_px))
    ]
    text = section(
        "Ways to decode",
        command=f"hires bench vae{request.words}",
        paragraphs=[ran, *decodes_table(figures)],
    )
    facts = request.facts() | {"decodes": [asdict(figure) for figure in figures]}
    return text, facts, partial(decodes_chart, figures=figures)


# GPUs


def _gpu(asked: dict[str, Any]) -> _Measured:
    from hirescli.evaluation.charts import gpu_chart
    from hirescli.evaluation.gpu import SIZES_PX, gpu_section, measure

    device = asked.get("device", "cuda")
    if device not in ("cuda", "cpu"):
        raise RequestError(f'device "{device}" cannot be measured; use cuda, or cpu to try it')
    sizes = asked.get("sizes", ",".join(map(str, SIZES_PX)))
    try:
        sizes_px = sorted(int(size) for size in sizes.split(","))
    except ValueError:
        raise RequestError(f'sizes "{sizes}" are not understood; write 1024,2048') from None
    rows = measure(sizes_px, device, shape="sdxl" if device == "cuda" else "tiny")
    words = "".join(f" --{key} {value}" for key, value in asked.items())
    ran = f"{date.today().isoformat()}."
    text = gpu_section(rows, device=device, ran=ran, command=f"hires bench gpu{words}")
    facts = {"device": device, "rows": [asdict(row) for row in rows]}
    return text, facts, partial(gpu_chart, rows=rows)


# Outputs


def _outputs(asked: dict[str, Any]) -> _Measured:
    from hirescli.evaluation.charts import outputs_chart
    from hirescli.evaluation.outputs import output_runs, outputs_table
    from hirescli.evaluation.page import machine, section
    from hirescli.units import parse_size

    sizes = [parse_size(size) for size in asked.get("size", [SIZE])]
    for width_px, height_px in sizes:
        if width_px != height_px:
            raise RequestError(
                f"`hires bench outputs` makes squares, not {width_px}x{height_px}; give one side"
            )
    runs = [run for width_px, _ in sizes for run in output_runs(width_px)]
    words = "".join(f" --size {width_px}" for width_px, _ in sizes)
    text = section(
        "Outputs",
        command=f"hires bench outputs{words}",
        paragraphs=[f"{date.today().isoformat()}. Machine: {machine()}.", *outputs_table(runs)],
    )
    facts = {"machine": machine(), "runs": [asdict(run) for run in runs]}
    return text, facts, partial(outputs_chart, runs=runs)


# CLEAR


def _clear(asked: dict[str, Any]) -> _Measured:
    from hirescli.evaluation.charts import clear_chart
    from hirescli.evaluation.page import section

    request = Request.of({"dtype": _clear_dtype(asked), **asked})
    import torch

    from hirescli.evaluation.clear import GRIDS, clear_table, measure_clear

    device = asked.get("device", _clear_device())
    grids = _clear_grids(asked["grids"]) if "grids" in asked else GRIDS[device]
    rows = measure_clear(
        grids, device=device, dtype=getattr(torch, request.dtype), threads=request.threads
    )
    named = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    text = section(
        "CLEAR's attention",
        command=f"hires bench clear{request.words}",
        paragraphs=[request.told(f"Device: {named}."), *clear_table(rows)],
    )
    facts = request.facts() | {"device": device, "rows": [asdict(row) for row in rows]}
    return text, facts, partial(clear_chart, rows=rows)


def _clear_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _clear_dtype(asked: dict[str, Any]) -> str:
    device = asked.get("device", "")
    if device not in ("", "cuda", "cpu"):
        raise RequestError(f'device "{device}" cannot be measured; use cuda or cpu')
    return "bfloat16" if (device or _clear_device()) == "cuda" else DTYPE


def _clear_grids(said: str) -> list[int]:
    try:
        return sorted(int(grid) for grid in said.split(","))
    except ValueError:
        raise RequestError(f'grids "{said}" are not understood; write 64,128') from None


# Findings


def _findings(asked: dict[str, Any]) -> _Measured:
    for name in ("data", "held-out", "work"):
        if name not in asked:
            raise RequestError(
                f"--{name} is missing; `hires bench findings --help` says what it is"
            )
    import torch

    from hirescli.evaluation.findings.experiment import Experiment, Settings
    from hirescli.evaluation.findings.report import findings_chart, findings_table
    from hirescli.evaluation.page import machine, section

    usual = Settings()
    settings = Settings(
        steps=asked.get("steps", usual.steps), pictures=asked.get("pictures", usual.pictures)
    )
    torch.set_num_threads(asked.get("threads", os.cpu_count() or 1))
    work, model = asked["work"], str(asked.get("model", "builtin"))
    experiment = Experiment(model, asked["data"], asked["held-out"], work, settings, _told)
    results = experiment.run()
    words = "".join(f" --{key} {value}" for key, value in asked.items())
    text = section(
        "Findings",
        command=f"hires bench findings{words}",
        paragraphs=[
            f"{date.today().isoformat()}. Machine: {machine()}.",
            *findings_table(results),
        ],
    )
    return text, results, partial(findings_chart, results=results, work=work)


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
