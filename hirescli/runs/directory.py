"""The run directory `OUT.run/`: lock, recipe, plan and spools of one output.

Only files that a run makes are ever removed from it, by name: a folder of the user's that
happens to be called so is refused and stays as it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from hirescli.errors import ConfigError, HiresError, RequestError, RunError
from hirescli.output.finalise import partial_path
from hirescli.output.metadata import inspect
from hirescli.recipe import CONSEQUENCES, Recipe, read_recipe_file

_RECIPE = "recipe.json"
_PLAN = "plan.json"
_LOCK = "lock"
_SPOOL_SUFFIX = ".spool.tif"
_WRITING_SUFFIX = ".writing"
_LOCK_TRIES = 5


class RunDirectory:
    """The locked folder of one running output; use it in a `with` statement.

    Leaving the statement gives the lock back; what is in the folder stays until `remove`.

    Args:
        output: The final name of the picture; the folder is `OUTPUT.run` beside it.
        recipe: The resolved recipe of this run.
        plan_json: The plan as JSON, for people who look into the folder.
        restart: Start over where the folder belongs to another recipe.

    Raises:
        RunError: If another process works in it, or it cannot be written.
        RequestError: If it is left from another recipe (without `restart`), or not a run's.

    Attributes:
        path: The folder.
        output: The final name.
    """

    def __init__(
        self, output: Path, *, recipe: Recipe, plan_json: str = "{}", restart: bool = False
    ) -> None:
        self.output = output
        self.path = run_path(output)
        self._lock = _locked(self.path, output)
        try:
            self._take_over(recipe, restart=restart)
            _write_atomically(self.path / _PLAN, plan_json)
            _write_atomically(self.path / _RECIPE, recipe.to_json(indent=2))
        except OSError as error:
            self._lock.release()
            raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error
        except BaseException:
            self._lock.release()
            raise

    def spool(self, name: str | int) -> Path:
        """Where a spool of this run lies, for a stage's index or a name."""
        stem = f"stage-{name}" if isinstance(name, int) else name
        return self.path / f"{stem}{_SPOOL_SUFFIX}"

    def drop_spools(self) -> None:
        """Free the disk of the run; recipe and plan stay."""
        self._clear()

    def remove(self) -> None:
        """Remove what the run made, after success. Files of others stay, and so the folder."""
        self._clear()
        for name in (_PLAN, _RECIPE, _LOCK):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: somebody put a file of theirs there
            self.path.rmdir()
        self._lock.release()

    def release(self) -> None:
        """Give the lock back and leave the folder."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _take_over(self, recipe: Recipe, *, restart: bool) -> None:
        """Check what an earlier run left, and remove its spools: they begin anew."""
        if not restart:
            _refuse_other_recipe(self.path, recipe)
        self._clear()

    def _clear(self) -> None:
        for path in [*_spools(self.path), partial_path(self.output)]:
            path.unlink(missing_ok=True)


def run_path(output: Path) -> Path:
    """The run directory of an output."""
    return output.with_name(output.name + ".run")


def refuse_conflict(output: Path, recipe: Recipe) -> None:
    """Refuse what `RunDirectory` would refuse, without making anything.

    Raises:
        RunError, RequestError: As `RunDirectory`.
    """
    path = run_path(output)
    if not path.exists():
        return
    _refuse_foreign(path)
    if (path / _LOCK).exists():
        _locked(path, output).release()
    _refuse_other_recipe(path, recipe)


def clear_finished(output: Path, recipe: Recipe) -> None:
    """Remove what a killed run of this recipe left beside its output, which is `finished`.

    A directory of another recipe, or one that another process works in, stays.
    """
    if run_path(output).exists():
        with contextlib.suppress(HiresError), RunDirectory(output, recipe=recipe) as left:
            left.remove()


def finished(output: Path, recipe: Recipe) -> bool:
    """Whether the output exists already, whole and made from this recipe.

    Args:
        output: The final name.
        recipe: The resolved recipe. Without embedded metadata the answer is always no.
    """
    if not output.is_file():
        return False
    try:
        facts = inspect(output)
        if facts.recipe is None:
            return False
        made_from = Recipe.from_fragments(facts.recipe)
    except RequestError:
        return False  # no file of ours: whether it may be replaced is for the plan to say
    size_fits = (facts.width_px, facts.height_px) == (recipe.width_px, recipe.height_px)
    return size_fits and made_from.hash == recipe.hash


def _locked(path: Path, output: Path) -> FileLock:
    """Make the folder and lock it at once or not at all."""
    for _ in range(_LOCK_TRIES):
        _make(path)
        lock = FileLock(path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another process is making {output} (it holds the lock in {path});"
                " wait for it, or choose another name with -o"
            ) from error
        except OSError:
            continue  # the other process removed the folder in between
        if (path / _LOCK).exists():
            return lock
        lock.release()  # locked a file that the other process was just removing
    raise RunError(f"cannot lock {path}; is its file system read-only or without locks?")


def _make(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {path}: {error.strerror or error}") from error
    _refuse_foreign(path)


def _refuse_foreign(path: Path) -> None:
    try:
        names = [entry.name for entry in path.iterdir()]
    except OSError as error:
        raise RunError(f"cannot make {path}: {error.strerror or error}") from error
    if names and not _is_run(names):
        raise RequestError(
            f"{path} exists and is no run directory; move it away, or choose another name with -o"
        )


def _refuse_other_recipe(path: Path, recipe: Recipe) -> None:
    left = path / _RECIPE
    keys = _differing_keys(left, recipe) if left.exists() else []
    if keys:
        raise RequestError(
            f"{path} is left from a run with another recipe (differs in {', '.join(keys)});"
            " give the same choices, --restart to start over, or another name with -o"
        )


def _is_run(names: Iterable[str]) -> bool:
    return any(name in (_LOCK, _RECIPE) for name in names)


def _spools(path: Path) -> list[Path]:
    """Spools, half-written texts, and what libvips leaves where it has no nameless files."""
    ends, starts = (_SPOOL_SUFFIX, _WRITING_SUFFIX), "vips-"
    return [e for e in path.iterdir() if e.name.endswith(ends) or e.name.startswith(starts)]


def _differing_keys(left: Path, recipe: Recipe) -> list[str]:
    """The choices in which a left recipe differs; all of it when it cannot be read."""
    try:
        before: dict[str, Any] = Recipe.from_fragments(read_recipe_file(left)).model_dump()
    except ConfigError:
        return ["everything: its recipe is damaged"]
    now = recipe.model_dump()
    return [key for key in now if key not in CONSEQUENCES and now[key] != before[key]]


def _write_atomically(path: Path, text: str) -> None:
    writing = path.with_name(path.name + _WRITING_SUFFIX)
    with writing.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(writing, path)
