"""`hires sheet`: many pictures small on one, with seed, size and prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hirescli.cli.options.option import whole
from hirescli.cli.streams import json_visible, visible, write_line
from hirescli.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from hirescli.output.sheet import Entry

_MOST_COLUMNS = 100
_MOST_FAULTS = 100  # shown at once
_THUMB_PX = 384


def sheet(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Pictures (TIFF, PNG, JPEG, WebP, AVIF or GIF), or the results.jsonl of a batch, "
            "which stands for all its finished outputs.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="File to write: .jpg, .jpeg or .png.",
            show_default=False,
        ),
    ],
    columns: Annotated[
        int | None,
        typer.Option(
            "--columns",
            metavar="N",
            parser=whole,
            help=f"Pictures side by side, 1 to {_MOST_COLUMNS}. Default: so many that the sheet "
            "is about half wider than high.",
            show_default=False,
        ),
    ] = None,
    thumb_px: Annotated[
        int,
        typer.Option(
            "--thumb-px",
            metavar="PX",
            parser=whole,
            help=f"Longest side of a picture on the sheet, 64 to 2048. Default: {_THUMB_PX}.",
            show_default=False,
        ),
    ] = _THUMB_PX,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output that exists.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Put pictures on a contact sheet, in the order given, with seed, size and prompt below each.

    What is read of a large pyramidal TIFF is its smallest level that is large enough. Missing and
    damaged files are named together, before anything is drawn.
    """
    from hirescli.output.sheet import THUMB_RANGE_PX, layout, write_sheet

    low, high = THUMB_RANGE_PX
    if not low <= thumb_px <= high:
        raise RequestError(f"thumb-px {thumb_px} is outside of {low} to {high}")
    if columns is not None and not 1 <= columns <= _MOST_COLUMNS:
        raise RequestError(f"columns {columns} is outside of 1 to {_MOST_COLUMNS}")
    _check_output(output, files, overwrite=overwrite)
    entries = _entries([path for file in files for path in _named(file)])
    where = layout(entries, columns=columns, thumb_px=thumb_px)
    write_sheet(entries, output, where, thumb_px=thumb_px)
    if json_:
        told = {
            "path": str(output), "width_px": where.width_px, "height_px": where.height_px,
            "columns": where.columns, "pictures": [str(each.path) for each in entries],
        }  # fmt: skip
        write_line(json_visible(json.dumps(told)))
    else:
        write_line(visible(str(output)))


def _check_output(output: Path, files: Sequence[Path], *, overwrite: bool) -> None:
    from hirescli.output.sheet import SHEET_SUFFIXES
    from hirescli.planning.places import check_output

    if output.suffix.lower() not in SHEET_SUFFIXES:
        known = ", ".join(SHEET_SUFFIXES)
        raise RequestError(f'sheet "{output}" has no suffix of {known}; name it {output.stem}.jpg')
    check_output(output, overwrite)
    if any(file.exists() and output.exists() and file.samefile(output) for file in files):
        raise RequestError(f"{output} is one of the pictures; give the sheet another name")


def _entries(paths: Sequence[Path]) -> list[Entry]:
    """All pictures, or all that is wrong with them."""
    from hirescli.output.sheet import entry

    entries, faults = [], []
    for path in paths:
        try:
            entries.append(entry(path))
        except RequestError as error:
            faults.append(str(error))
    if faults:
        more = len(faults) - _MOST_FAULTS
        shown = [*faults[:_MOST_FAULTS], f"and {more} more"] if more > 0 else faults
        raise ConfigError("the pictures", shown)
    return entries


def _named(file: Path) -> list[Path]:
    """A picture, or the outputs that a file of results tells of."""
    if file.suffix.lower() != ".jsonl":
        return [file]
    outputs = list(dict.fromkeys(_outputs(file)))
    if not outputs:
        raise RequestError(f"{file} tells of no finished output; is it a results.jsonl?")
    return outputs


def _outputs(file: Path) -> Iterator[Path]:
    """Outputs that are finished; they are named as seen from where the batch was started."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise RequestError(f"{file} cannot be read: {why}; check the name") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else {}
            status, output = row.get("status"), row.get("output")
        except (ValueError, AttributeError, RecursionError) as error:
            raise RequestError(
                f"{file}, line {number}: is no row of results; give the results.jsonl of a batch"
            ) from error
        if status in ("done", "skipped") and isinstance(output, str):
            here, beside = Path(output), file.parent / Path(output).name
            yield here if here.exists() or not beside.exists() else beside
