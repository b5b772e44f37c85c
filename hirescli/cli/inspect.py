"""`hires inspect`: seams, repetition, colour drift and sharpness of pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hirescli.cli.streams import json_visible, visible, write_line
from hirescli.errors import RequestError

if TYPE_CHECKING:
    from hirescli.cli.render import Sheet
    from hirescli.evaluation.inspection.inspecting import Inspection, Told
    from hirescli.evaluation.inspection.verdicts import Finding

_SUFFIX = ".inspect.png"


def inspect(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="TIFF (of a pyramid the largest level), PNG, JPEG or spool, 8 or 16 bits.",
            show_default=False,
        ),
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="FILE",
            help="Picture of the base stage, to compare colours with. Default: "
            "FILE.stage-0.jpg, or the base stage in FILE.run; without any, colours are not "
            "compared.",
            show_default=False,
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            metavar="PNG",
            help=f"Where the figure goes, of one FILE. Default: FILE{_SUFFIX}; with --json, none.",
            show_default=False,
        ),
    ] = None,
    no_figure: Annotated[
        bool,
        typer.Option(
            "--no-figure", help="Write no figure. Default: one for each FILE, with --json none."
        ),
    ] = False,
    json_: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object for each FILE, a line each; a figure with --figure only.",
        ),
    ] = False,
) -> None:
    """Measure what goes wrong in large generated pictures, and say what the numbers mean.

    Seams: lines at regular distances, as tiled decoders leave them. Repetition: patterns that
    come again. Colour drift: against the base stage, if it is there. Sharpness: down to which
    size there is more detail than an enlargement has.

    Each file is read once, in bands; memory hardly grows with its size. A verdict is "fine",
    "look" (at the picture there) or "bad"; docs/inspect.md says where they are wrong.
    """
    from hirescli.evaluation.charts import check_target
    from hirescli.evaluation.inspection.figure import draw
    from hirescli.evaluation.inspection.inspecting import inspect as measured
    from hirescli.evaluation.inspection.rows import open_picture
    from hirescli.evaluation.inspection.verdicts import to_dict

    targets = _targets(files, figure, none=no_figure, default=not json_)
    if base is not None and len(files) > 1:
        raise RequestError(f"--base is of one picture, {len(files)} are named; name one of them")
    for target in targets:
        if target is not None:
            check_target(target)
    for file in files:  # what is wrong with the last is said before the first has taken minutes
        open_picture(file)
    all_found = []
    for file, target in zip(files, targets, strict=True):
        with _progress(file) as told:
            found, traces = measured(file, base=base, told=told)
        all_found.append(found)
        if target is not None:
            draw(target, found, traces)
        if json_:
            facts = to_dict(found) | {"figure": None if target is None else str(target)}
            write_line(json_visible(json.dumps(facts, allow_nan=False, ensure_ascii=False)))
    if not json_:
        _show(all_found, targets)


def _targets(
    files: Sequence[Path], figure: Path | None, *, none: bool, default: bool
) -> list[Path | None]:
    """Where the figure of each file goes; `default`: whether there is one that is not named."""
    if figure is not None and none:
        raise RequestError("--figure and --no-figure exclude each other; leave one out")
    if figure is not None and len(files) > 1:
        raise RequestError(f"--figure is of one picture, {len(files)} are named; leave it out")
    if none or (figure is None and not default):
        return [None] * len(files)
    return [figure or Path(f"{file}{_SUFFIX}") for file in files]


@contextmanager
def _progress(file: Path) -> Iterator[Told]:
    """A bar on stderr for people who watch."""
    if not sys.stderr.isatty():
        yield lambda done, rows: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    from hirescli.cli.render import console

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as progress:
        task = progress.add_task(visible(file.name))
        yield lambda done, rows: progress.update(task, completed=done, total=rows)


def _show(all_found: Sequence[Inspection], targets: Sequence[Path | None]) -> None:
    from hirescli.cli.render import console
    from hirescli.evaluation.inspection.verdicts import findings

    out = console()
    if len(all_found) == 1:
        out.print(_one(findings(all_found[0])))
    else:
        out.print(_several(all_found))
    for target in targets:
        if target is not None:
            out.print(f"figure  {visible(str(target))}", soft_wrap=True)


def _one(lines: Sequence[Finding]) -> Sheet:
    from hirescli.cli.render import table

    shown = table("measure", "verdict", "value", "what it means")
    for line in lines:
        shown.add_row(line.measure, line.verdict, line.value, visible(line.means))
    return shown


def _several(all_found: Sequence[Inspection]) -> Sheet:
    from hirescli.cli.render import table
    from hirescli.evaluation.inspection.verdicts import findings, overall

    measures = [line.measure for line in findings(all_found[0])]
    shown = table("file", "size", "verdict", *measures)
    for found in all_found:
        lines = findings(found)
        cells = [
            line.value if line.verdict in ("fine", "unknown") else f"{line.value}: {line.verdict}"
            for line in lines
        ]
        size = f"{found.width_px}x{found.height_px}"
        shown.add_row(visible(found.path.name), size, overall(lines), *cells)
    return shown
