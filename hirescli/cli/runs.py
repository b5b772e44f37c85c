"""`hires runs`: what interrupted runs have left, how to go on with it, and removing it."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hirescli.cli.options.option import paragraphs
from hirescli.cli.streams import json_visible, visible
from hirescli.errors import HiresError, RequestError, RunError

if TYPE_CHECKING:
    from hirescli.runs.left import LeftRun

app = typer.Typer(
    help="List, show and remove what interrupted runs have left.", no_args_is_help=True
)
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])")


def list_(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="[DIR]",
            help="Where to look, down to 3 levels of folders. Default: this folder.",
            show_default=False,
        ),
    ] = Path(),
    json_: _Json = False,
) -> None:
    """List run directories: their output, how far it is, what they take, and who works there."""
    found = _all_described(_found_in(folder))
    if json_:
        print(json_visible(json.dumps([_as_dict(each) for each in found])))
        return
    _print_table(found)


def show(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run directory, or the output that it is for.",
            show_default=False,
        ),
    ],
    json_: _Json = False,
) -> None:
    """Show a run directory: recipe, conditions, finished stages, the command that goes on."""
    from hirescli.runs.left import describe

    left = describe(_named(run))
    if json_:
        print(json_visible(json.dumps(_as_dict(left) | _more(left))))
        return
    for line in _lines(left):
        print(visible(line))


def clean(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[DIR|RUN]...",
            help="Folders to look in, run directories, or outputs. Default: this folder.",
            show_default=False,
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Only what nothing was written to for so long: 90s, 30m, 12h, 7d or 2w. "
            "Default: of any age.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("-y", "--yes", help="Do not ask. Default: ask on a terminal.")
    ] = False,
    json_: _Json = False,
) -> None:
    """Remove run directories; what they have finished has to be made again.

    Only what runs make is removed, and none that a process works in. Without a terminal to ask
    on, --yes is needed. What --keep-run has kept goes only if it is named itself.
    """
    least_seconds = 0.0 if older_than is None else _seconds(older_than)
    chosen = _chosen(places or [Path()])
    old = [each for each in _all_described(chosen) if each.age_seconds >= least_seconds]
    spared = {each.path: _spared(each, named=chosen[each.path]) for each in old}
    for path, reason in spared.items():
        if reason is not None:
            _say(f"{path} is left: {reason}", "note")
    idle = [each for each in old if spared[each.path] is None]
    if idle and not yes and not _agreed(idle, as_json=json_):
        return
    removed, problems = _remove(idle)
    if json_:
        told = {"removed": [_as_dict(each) for each in removed], "problems": problems}
        print(json_visible(json.dumps(told)))
    else:
        for each in removed:
            print(visible(str(each.path)))
    if problems:
        raise RunError("\n".join(problems))


for _name, _command in (("list", list_), ("show", show), ("clean", clean)):
    app.command(_name, help=paragraphs(_command.__doc__))(_command)


def _found_in(folder: Path) -> Iterator[Path]:
    from hirescli.runs.left import find_runs

    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder; name one that outputs were made in")
    return find_runs(folder)


def _named(path: Path) -> Path:
    from hirescli.runs.left import run_named

    found = run_named(path)
    if found is None:
        raise RequestError(
            f"{path} is no run directory, and no output that has one; `hires runs list` shows "
            "those there are"
        )
    return found


def _spared(left: LeftRun, *, named: bool) -> str | None:
    """Why a run directory is not removed, if it is not."""
    if left.at_work:
        return "a process works in it"
    return "it shall be kept; name it to remove it" if left.kept and not named else None


def _chosen(places: Sequence[Path]) -> dict[Path, bool]:
    """The run directories that paths name or hold, and whether each is named itself."""
    from hirescli.runs.left import run_named

    found: dict[Path, bool] = {}
    for place in places:
        run = run_named(place)
        if run is None and not place.is_dir():
            _named(place)  # raises
        if run is not None:
            found[run] = True
        else:
            for path in _found_in(place):
                found.setdefault(path, False)
    return found


def _all_described(paths: Iterable[Path]) -> list[LeftRun]:
    from hirescli.runs.left import describe

    found = []
    for path in paths:
        with contextlib.suppress(RequestError):  # its run has just removed it
            found.append(describe(path))
    return found


def _agreed(idle: Sequence[LeftRun], *, as_json: bool) -> bool:
    from hirescli.units import format_bytes

    if as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RequestError(
            f"{len(idle)} run directories would be removed, and nobody can be asked; give --yes, "
            "or look at them with `hires runs list`"
        )
    for each in idle:
        _say(f"{each.path}: {each.state}, {format_bytes(each.size_bytes)}", "note")
    return typer.confirm(f"Remove {len(idle)} run directories?", err=True)


def _remove(idle: Sequence[LeftRun]) -> tuple[list[LeftRun], list[str]]:
    """Remove each; what was removed, and why others were not."""
    from hirescli.runs.left import remove

    removed, problems = [], []
    for each in idle:
        try:
            if remove(each):
                removed.append(each)
            else:
                problems.append(f"{each.path} holds files that no run made; they are left there")
        except HiresError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename or each.path}: {error.strerror or error}")
    return removed, problems


def _seconds(text: str) -> float:
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise RequestError(f'age "{text}" is not understood; write it like 12h, 7d or 2w')
    return float(match[1]) * _SECONDS[match[2]]


def _print_table(found: Sequence[LeftRun]) -> None:
    from hirescli.cli.render import console, table
    from hirescli.units import format_bytes

    if not found:
        _say("no run directories here", "note")
        return
    shown = table("output", "state", "size", "age", "at work", right=("size", "age"))
    for each in found:
        shown.add_row(
            visible(str(each.output)), each.state, format_bytes(each.size_bytes),
            _age(each.age_seconds), "yes" if each.at_work else "no",
        )  # fmt: skip
    console().print(shown)


def _age(seconds: float) -> str:
    """An age in its largest unit: "40 s", "12 min", "3 h", "9 d"."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _as_dict(left: LeftRun) -> dict[str, Any]:
    return {
        "run": str(left.path),
        "output": str(left.output),
        "state": left.state,
        "stages": len(left.stages),
        "finished_stages": left.finished,
        "size_bytes": left.size_bytes,
        "age_seconds": round(left.age_seconds, 1),
        "at_work": left.at_work,
        "kept": left.kept,
    }


def _more(left: LeftRun) -> dict[str, Any]:
    return {
        "recipe": None if left.recipe is None else left.recipe.model_dump(mode="json"),
        "conditions": dict(left.conditions),
        "command": left.command,
    }


def _lines(left: LeftRun) -> Iterator[str]:
    from hirescli.units import format_bytes

    yield f"output      {left.output}"
    work = "a process works in it" if left.at_work else "no process works in it"
    yield f"state       {left.state}; {work}"
    size, age = format_bytes(left.size_bytes), _age(left.age_seconds)
    yield f"size        {size}, last written {age} ago"
    for stage in left.stages:
        index = stage.get("index")
        done = isinstance(index, int) and index < left.finished
        number = index + 1 if isinstance(index, int) else "?"
        size = f"{stage.get('width_px')}x{stage.get('height_px')}"
        what = f"{number} {stage.get('kind')}, {size}, {stage.get('steps')} steps"
        yield f"stage       {what}: {'finished' if done else 'not finished'}"
    if left.recipe is not None:
        for key, value in left.recipe.model_dump(mode="json").items():
            if value not in (None, "", []):
                yield f"recipe      {key} = {json.dumps(value, ensure_ascii=False)}"
    for key, condition in left.conditions.items():
        yield f"condition   {key} = {condition}"
    if left.kept:
        yield f"decodes     hires generate --from-latents {shlex.quote(str(left.path))}"
    else:
        yield f"goes on     {left.command or 'no: its recipe is damaged; give --restart'}"


def _say(message: str, kind: str) -> None:
    from hirescli.cli.app import say

    say(message, kind=kind)
