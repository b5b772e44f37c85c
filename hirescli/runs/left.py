"""Run directories that runs have left, or work in: finding, describing and removing them."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import ConfigError, RequestError
from hirescli.planning.formats import FORMATS
from hirescli.recipe import Recipe, read_recipe_file

LEVELS = 3  # of folders that are searched
_SUFFIX = ".run"
_MARKS = ("lock", "recipe.json")  # one of them is in every run directory
_JOURNAL = "journal.jsonl"
_SUFFIXES = tuple(suffix for fmt in FORMATS.values() for suffix in fmt.suffixes)


@dataclass(frozen=True)
class LeftRun:
    """What a run directory tells, read without disturbing who works in it.

    Attributes:
        path: The folder.
        output: The file that it is for.
        recipe: None: missing or damaged.
        conditions: What the bits depend on beside it.
        stages: As in the plan; empty if it is damaged.
        finished: How many of them are.
        calls: Model calls that the stage under way has finished.
        size_bytes: On the disk.
        age_seconds: Since something was written.
        at_work: Whether a process holds the lock.
        kept: Whether it stays, though its output is finished.
        spill: Folder for its values on disk; None: itself.
    """

    path: Path
    output: Path
    recipe: Recipe | None
    conditions: Mapping[str, str]
    stages: Sequence[Mapping[str, Any]]
    finished: int
    calls: int
    size_bytes: int
    age_seconds: float
    at_work: bool
    kept: bool
    spill: str | None

    @property
    def state(self) -> str:
        """How far it is, in words."""
        total = len(self.stages)
        if self.kept:
            return "finished and kept"
        if self.recipe is None or not total:
            return "recipe or plan is damaged"
        if self.finished == total:
            return f"all {total} stages finished, the file is not"
        begun = f", {self.calls} calls of the next" if self.calls else ""
        return f"{self.finished} of {total} stages finished{begun}"

    @property
    def command(self) -> str | None:
        """The command that goes on with it; None if its recipe is damaged."""
        if self.recipe is None:
            return None
        words = ["hires", "generate", "--recipe", str(self.path / "recipe.json")]
        for flag, key in (("--memory", "memory"), ("--host-memory", "host memory")):
            if (size := self.conditions.get(key, "")).isdigit():
                words += [flag, size]
        if self.spill is not None:
            words += ["--spill", self.spill]
        return shlex.join([*words, "-o", str(self.output)])


def find_runs(folder: Path, levels: int = LEVELS) -> Iterator[Path]:
    """The run directories below a folder, sorted; symlinks are not followed.

    Args:
        folder: Where to look; what cannot be read is passed over.
        levels: Of folders; 1 is this folder alone.
    """
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not os.path.isdir(path):
                continue
            if is_run(path):
                yield path
            elif levels > 1:
                yield from find_runs(path, levels - 1)


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory of ours, by its name and what is in it."""
    if not path.name.removesuffix(_SUFFIX).lower().endswith(_SUFFIXES):
        return False
    if not path.name.endswith(_SUFFIX) or os.path.islink(path):
        return False
    return any(os.path.isfile(path / mark) for mark in _MARKS)


def run_named(path: Path) -> Path | None:
    """The run directory that a path names: itself, or that of an output; None if there is none."""
    beside = path.with_name(path.name + _SUFFIX) if path.name else path
    return next((each for each in (path, beside) if is_run(each)), None)


def describe(path: Path) -> LeftRun:
    """What a run directory tells.

    Raises:
        RequestError: If it is none.
    """
    if not is_run(path):
        raise RequestError(f"{path} is no run directory; `hires runs list` shows those there are")
    plan = _json(path / "plan.json")
    facts = _facts(path / _JOURNAL)
    stages = [stage for stage in plan.get("stages") or [] if isinstance(stage, dict)]
    done = [index for index in range(len(stages)) if f"stage-{index}.done" in facts]
    finished = max(done) + 1 if done else 0
    under_way = f"stage-{finished}."
    calls = [key for key in facts if key.startswith(under_way) and key.endswith(".result")]
    spill = plan.get("spill")
    size_bytes, written = _size_and_time(path)
    output = path.with_name(path.name.removesuffix(_SUFFIX))
    return LeftRun(
        path=path,
        output=output,
        recipe=_recipe(path / "recipe.json"),
        conditions={key: str(value) for key, value in _json(path / "conditions.json").items()},
        stages=stages,
        finished=finished,
        calls=len(calls),
        size_bytes=size_bytes,
        age_seconds=max(0.0, time.time() - written),
        at_work=at_work(path),
        kept=os.path.lexists(path / "kept") and 0 < len(stages) == finished and output.exists(),
        spill=spill if isinstance(spill, str) else None,
    )


def at_work(path: Path) -> bool:
    """Whether a process holds the lock of a run directory."""
    import fcntl

    try:
        descriptor = os.open(path / "lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove(left: LeftRun) -> bool:
    """Remove what a run has left; what others have put there stays, and the folder with it.

    Returns:
        Whether the folder is gone.

    Raises:
        RunError: If a process works in it, or it cannot be removed.
    """
    from hirescli.runs.directory import RunDirectory

    recipe = left.recipe or Recipe(prompt="damaged", width_px=1, height_px=1)
    with RunDirectory(left.output, recipe=recipe, restart=True) as directory:
        directory.remove()
    return not left.path.exists()


def _recipe(path: Path) -> Recipe | None:
    try:
        return Recipe.from_fragments(read_recipe_file(path))
    except ConfigError:
        return None


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return data
    return {}


def _facts(path: Path) -> set[str]:
    """The keys of which a journal has facts; behind a torn line nothing counts."""
    facts: dict[str, dict[str, Any]] = {}
    wrong = (OSError, ValueError, KeyError, TypeError, AttributeError)
    with contextlib.suppress(*wrong), path.open("rb") as file:
        for line in file:
            fact = json.loads(line)["fact"]
            if fact["key"] != "dropped":
                facts[fact["key"]] = fact
                continue
            start, but = fact["beginning"], fact["but"]
            for key in [k for k in facts if k.startswith(start) and k != but]:
                if "file" in facts[key]:
                    del facts[key]
    return set(facts)


def _size_and_time(path: Path) -> tuple[int, float]:
    """Bytes on the disk, and when something was written last."""
    size_bytes, written = 0, 0.0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a run at work has just removed it
                facts = os.lstat(os.path.join(folder, name))
                size_bytes += facts.st_blocks * 512
                written = max(written, facts.st_mtime)
    return size_bytes, written or time.time()
