"""What stands of a picture on the disk: its finished file, or the newest finished stage."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import RequestError
from hirescli.runs.left import LeftRun, describe, run_named

_LAST = "last.spool.tif"


@dataclass(frozen=True)
class Standing:
    """One state of a picture that can be shown.

    Attributes:
        path: The file or the spool.
        stage: Index of the stage whose spool it is; None: it is the finished file.
        version: Tells it from all others, as 16 hexadecimal digits.
    """

    path: Path
    stage: int | None
    version: str


def named_output(named: Path) -> Path:
    """The output that a name means: a file, or that of a run directory.

    Raises:
        RequestError: If there is neither such a file nor a run that makes it.
    """
    if named.name.endswith(".run") and (run := run_named(named)) is not None:
        return run.with_name(run.name.removesuffix(".run"))
    if os.path.lexists(named) or run_named(named) is not None:
        return named
    raise RequestError(
        f"{named} does not exist, and no run makes it (there is no {named.name}.run); check the "
        "name, or start the run first"
    )


def labels(outputs: Sequence[Path]) -> list[str]:
    """What pictures are called beside each other: the shortest ends of their paths that differ."""
    parts = [output.absolute().parts for output in outputs]
    for count in range(1, max(map(len, parts), default=0)):
        ends = ["/".join(each[-count:]) for each in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [output.name for output in outputs]


def left_run(output: Path) -> LeftRun | None:
    """What the run of an output tells, if there is one."""
    run = run_named(output)
    if run is None:
        return None
    with contextlib.suppress(RequestError):  # it has just been removed
        return describe(run)
    return None


def standing(output: Path, left: LeftRun | None) -> Standing | None:
    """The newest state that can be shown; None: nothing is finished yet.

    While a process makes the picture anew, its stages are newer than the file they will replace.
    """
    stage = None if left is None else _stage(left)
    file = _standing(output, None)
    if left is not None and left.at_work:
        return stage or file
    return file or stage


def status(left: LeftRun | None, shown: Standing | None) -> dict[str, Any]:
    """How far the picture is: its kind, a sentence, what is shown, and the share that is done."""
    finished = shown is not None and shown.stage is None
    if left is None or (finished and not left.at_work):
        return {"kind": "done", "text": "", "shown": "", "fraction": 1.0}
    text, share = _progress(left)
    what = "" if shown is None or shown.stage is None else f"showing stage {shown.stage + 1}"
    if not left.at_work:
        text = f"interrupted: {text}"
    kind = "making" if left.at_work else "interrupted"
    return {"kind": kind, "text": text, "shown": what, "fraction": round(share, 4)}


def _progress(left: LeftRun) -> tuple[str, float]:
    """What is under way, and the share that is done."""
    total = len(left.stages)
    if not total:
        return "starting", 0.0
    if left.finished >= total:
        return "writing the file", 1.0
    stage = left.stages[left.finished]
    size = size_text(int(_number(stage, "width_px")), int(_number(stage, "height_px")))
    return f"making stage {left.finished + 1} of {total} ({size})", _share(left)


def size_text(width_px: int, height_px: int) -> str:
    """A size as the page writes it."""
    return f"{width_px:,} \N{MULTIPLICATION SIGN} {height_px:,}"


def _stage(left: LeftRun) -> Standing | None:
    """The spool of the newest finished stage."""
    if not left.finished:
        return None
    index = left.finished - 1
    name = _LAST if left.finished == len(left.stages) else f"stage-{index}.spool.tif"
    return _standing(left.path / name, index)


def _standing(path: Path, stage: int | None) -> Standing | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    told = (os.fspath(path.absolute()), stage, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return Standing(path, stage, hashlib.sha256(repr(told).encode()).hexdigest()[:16])


def _share(left: LeftRun) -> float:
    """The share of the planned time that the finished stages and calls stand for."""
    seconds = [_number(stage, "seconds") for stage in left.stages]
    done, calls = sum(seconds[: left.finished]), left.calls
    for part in left.stages[left.finished].get("components") or []:
        planned = int(_number(part, "calls"))
        done += _number(part, "seconds") * min(calls, planned) / max(planned, 1)
        calls = max(0, calls - planned)
    return min(1.0, done / sum(seconds)) if sum(seconds) > 0 else 0.0


def _number(told: Mapping[str, Any], key: str) -> float:
    value = told.get(key)
    return float(value) if isinstance(value, (int, float)) and value > 0 else 0.0
