"""What commands of `hires eval` have in common: options of the pictures they make, progress."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hirescli.cli.options.option import option as option
from hirescli.cli.streams import json_visible, write_line

Output = Annotated[
    Path,
    option(
        "-o",
        "--output",
        metavar="FOLDER",
        text="Where pictures and figures go. What stands there already is not made again.",
    ),
]
Seed = Annotated[
    int,
    option(
        "-s",
        "--seed",
        metavar="N",
        min=0,
        text="Of the first picture; the next ones count on. Default: 0.",
    ),
]
Model = Annotated[
    str | None, option("-m", "--model", metavar="MODEL", text="As in `hires generate`.")
]
Attention = Annotated[
    str | None,
    option("--attention", metavar="auto|linear|full", text="As in `hires generate`."),
]
Adapter = Annotated[
    str | None, option("--adapter", metavar="PATH|ID", text="As in `hires generate`.")
]
Steps = Annotated[int | None, option("--steps", metavar="N", text="As in `hires generate`.")]
GuidanceScale = Annotated[
    float | None,
    option("--guidance-scale", "--cfg-scale", metavar="X", text="As in `hires generate`."),
]
Device = Annotated[
    str | None, option("--device", metavar="cpu|cuda", text="As in `hires generate`.")
]
Kinds = Annotated[
    list[str] | None,
    option(
        "--kind",
        metavar="KIND",
        text="Kind of shards to take, such as wide or photo; give it several times for several. "
        "Default: all.",
    ),
]
Threads = Annotated[
    int | None,
    option("--threads", metavar="N", min=1, max=1024, text="CPU threads. Default: all cores."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def given(**said: Any) -> dict[str, Any]:
    """The choices that were made, as a partial recipe."""
    return {name: value for name, value in said.items() if value is not None}


def told(words: str, count: int) -> None:
    """Say to people who watch how far it is."""
    if sys.stderr.isatty():
        print(f"{count} {words}", file=sys.stderr, flush=True)


def need_scipy() -> None:
    """Refuse to render without what renders.

    Raises:
        RequestError: If scipy is not installed.
    """
    from importlib.util import find_spec

    from hirescli.errors import RequestError

    if find_spec("scipy") is None:
        raise RequestError('renders need scipy; install it with: pip install ".[eval]"')


def write_json(path: Path, found: Any) -> None:
    """Write figures beside the pictures, whole or not at all."""
    write_text(path, json_text(found) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def say(found: Any, text: str, *, as_json: bool) -> None:
    """Print figures as JSON on one line, or in words."""
    if as_json:
        write_line(json_visible(json_text(found)))
    else:
        print(text.rstrip(), flush=True)


def json_text(found: Any) -> str:
    """JSON on one line."""
    import json

    return json.dumps(found)
