"""The run directory `OUT.run/`: lock, recipe, plan, journal, records and spools of one output.

Only files that a run makes are ever removed from it, by name: a folder of the user's that
happens to be called so is refused and stays as it is.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from hirescli.digest import digest
from hirescli.disk import WRITING_SUFFIX, write_atomically
from hirescli.errors import BusyError, ConfigError, HiresError, RequestError, RunError
from hirescli.output.metadata import inspect
from hirescli.output.places import discard, name, partial_part, partial_path
from hirescli.planning.formats import parts
from hirescli.recipe import CONSEQUENCES, Recipe, read_recipe_file
from hirescli.runs.journal import JOURNAL, SUFFIXES, Journal

RECIPE = "recipe.json"
_PLAN = "plan.json"
_CONDITIONS = "conditions.json"
_LOCK = "lock"
_KEPT = "kept"
_NAMING = "naming.json"  # says which files are whole and get their names
_SPILL = "spill"  # says in which other folder values lie
# In the order in which they go: without a journal nothing else counts.
_TEXTS = (JOURNAL, _NAMING, _KEPT, _PLAN, _CONDITIONS, RECIPE)
# What may be chosen anew where latents are decoded again.
_AFTER_LATENTS = {
    "vae_dtype", "vae_mode", "vae_attention", "format", "bits", "tile_px", "compression",
    "pyramid", "tile_layout", "tile_format", "quality", "dpi", "metadata", "rows", "threads",
    "device",
}  # fmt: skip
_SPOOL_SUFFIX = ".spool.tif"
_LOCK_TRIES = 5
# Whoever only looks whether somebody works in a folder holds its lock for an instant.
_LOCK_SECONDS = 0.2
_DIGITS = 8  # of the digest in the name of a folder
_SHOWN = 60  # characters of a value in a message


def _silent(_: str) -> None:
    pass


class RunDirectory:
    """The locked folder of one running output; use it in a `with` statement.

    Leaving the statement gives the lock back; what is in the folder stays until `remove`.

    Args:
        output: The final name of the picture; the folder is `OUTPUT.run` beside it.
        recipe: The resolved recipe of this run.
        conditions: What the bits depend on beside it: see `hirescli.runs.conditions`.
        plan_json: The plan as JSON, for people who look into the folder.
        spill: Where values on disk lie, in a folder of this run; None: in this folder.
        keep: Leave the folder when the run is finished, for `--from-latents` and for people.
        restart: Start over, also where the folder belongs to another recipe.
        warn: Told of records that are damaged.

    Raises:
        BusyError: If another process works in it.
        RunError: If it cannot be written.
        RequestError: If it is left from another recipe or was made under other conditions
            (without `restart`), or is not a run's.

    Attributes:
        path: The folder.
        output: The final name.
        spill: Where values on disk lie.
        journal: What is finished.
    """

    def __init__(
        self,
        output: Path,
        *,
        recipe: Recipe,
        conditions: Mapping[str, str] | None = None,
        plan_json: str = "{}",
        spill: Path | None = None,
        keep: bool = False,
        restart: bool = False,
        warn: Callable[[str], None] = _silent,
    ) -> None:
        self.output = output
        self.path = run_path(output)
        self._lock = _locked(self.path, output)
        try:
            if restart:
                self._clear()
            else:
                _refuse_others(self.path, recipe, conditions)
            write_atomically(self.path / _PLAN, plan_json)
            write_atomically(self.path / _CONDITIONS, json.dumps(dict(conditions or {})))
            write_atomically(self.path / RECIPE, recipe.to_json(indent=2))
            if keep:
                write_atomically(self.path / _KEPT, "")
            self.spill = self._spill_in(spill)
            of = _identity(recipe, conditions)
            self.journal = Journal(self.path, warn, of=of, spill=self.spill)
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

    def names_next(self, outputs: Sequence[Path], overwrite: bool) -> None:
        """All files are whole: see `complete_naming`."""
        files = {
            str(output.absolute()): {
                str(part.absolute()): _identity_of(partial_part(output, part))
                for part in parts(output)
            }
            for output in outputs
        }
        said = {"files": files, "overwrite": overwrite}
        write_atomically(self.path / _NAMING, json.dumps(said))

    def finish(self) -> None:
        """The output stands: remove what the run made, unless it shall be kept."""
        if (self.path / _KEPT).exists():
            (self.path / _NAMING).unlink(missing_ok=True)
            self.release()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove what the run made. Files of others stay, and so the folder."""
        self._clear()
        (self.path / _LOCK).unlink(missing_ok=True)
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

    def _clear(self) -> None:
        """Remove all that a run makes, but the lock."""
        made = [self.path / name for name in _TEXTS]
        for path in [*made, *_made(self.path)]:
            path.unlink(missing_ok=True)
        discard(partial_path(self.output))
        self._clear_spill()

    def _spill_in(self, folder: Path | None) -> Path:
        """This run's own folder in another one: several runs may share that."""
        said = self.path / _SPILL
        name = f"{self.path.name}-{digest(str(self.path.resolve()).encode())[:_DIGITS]}"
        own = self.path if folder is None else folder / name
        if said.exists() and said.read_text(encoding="utf-8") != str(own):
            self._clear_spill()
        if folder is not None:
            write_atomically(said, str(own))
            own.mkdir(exist_ok=True)
        return own

    def _clear_spill(self) -> None:
        """Remove this run's values from the other folder that it has said."""
        said = self.path / _SPILL
        with contextlib.suppress(OSError):
            own = Path(said.read_text(encoding="utf-8"))
            if own.name.startswith(f"{self.path.name}-"):
                for path in _made(own):
                    path.unlink(missing_ok=True)
                own.rmdir()
        said.unlink(missing_ok=True)


def run_path(output: Path) -> Path:
    """The run directory of an output."""
    return output.with_name(output.name + ".run")


def refuse_conflict(
    output: Path,
    recipe: Recipe,
    conditions: Callable[[], Mapping[str, str]] | None = None,
    *,
    wait: bool = False,
) -> None:
    """Refuse what `RunDirectory` would refuse, without making anything.

    Args:
        output: As of `RunDirectory`.
        recipe: As of `RunDirectory`.
        conditions: Gives those of `RunDirectory`; asked only if there is a run directory.
        wait: Whether that of a process at work is no fault yet.

    Raises:
        RunError, RequestError: As `RunDirectory`.
    """
    path = run_path(output)
    if not path.exists():
        return
    _refuse_foreign(path)
    try:
        if (path / _LOCK).exists():
            _locked(path, output).release()
    except BusyError:
        if wait:
            return
        raise
    _refuse_others(path, recipe, None if conditions is None else conditions())


def complete_naming(output: Path, recipe: Recipe) -> bool:
    """Name what a run that ended while it named its files has left whole.

    Returns:
        Whether the output stands now with all its files, and was made from this recipe.

    Raises:
        RunError: If another process works on it, or a name is taken.
    """
    path = run_path(output)
    try:
        said = json.loads((path / _NAMING).read_text(encoding="utf-8"))
        files, overwrite = dict(said["files"]), bool(said["overwrite"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if [*files][-1:] != [str(output.absolute())] or _differing_keys(path / RECIPE, recipe):
        return False
    lock = _locked(path, output)
    try:
        for each in map(Path, files):
            name(partial_path(each), each, path, overwrite=overwrite)
    except OSError as error:
        raise RunError(f"cannot name {output}: {error.strerror or error}") from error
    finally:
        lock.release()
    # A file of somebody else may have come in the place of one that was never named.
    made = [item for each in files.values() for item in each.items()]
    return all(_identity_of(Path(part)) == identity for part, identity in made)


def _identity_of(path: Path) -> list[int]:
    """Tells a file from others that have its name later, and stays when it is renamed."""
    try:
        facts = path.lstat()
    except OSError:
        return []
    return [facts.st_ino] if path.is_dir() else [facts.st_ino, facts.st_size, facts.st_mtime_ns]


def clear_finished(output: Path, recipe: Recipe) -> None:
    """Remove what a killed run of this recipe left beside its output, which is `finished`.

    A directory of another recipe, one that another process works in, or that shall be kept stays.
    """
    path = run_path(output)
    if path.exists() and not (path / _KEPT).exists():
        with contextlib.suppress(HiresError), RunDirectory(output, recipe=recipe) as left:
            left.remove()


def finished(output: Path, recipe: Recipe) -> bool:
    """Whether the output exists already, whole and made from this recipe.

    Args:
        output: The final name.
        recipe: The resolved recipe. Without embedded metadata the answer is always no.
    """
    if not output.exists():
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


def kept_run(named: Path) -> Path:
    """The run directory that a path names: itself, or that of an output.

    Raises:
        RequestError: If there is none.
    """
    for path in (named, run_path(named)):
        if (path / RECIPE).is_file():
            return path
    raise RequestError(
        f"{named} is no run directory, and has none beside it; keep one with --keep-run"
    )


def kept_recipe(path: Path) -> Recipe:
    """The recipe of a run directory.

    Raises:
        ConfigError: If it is damaged.
    """
    return Recipe.from_fragments(read_recipe_file(path / RECIPE))


def kept_journal(path: Path, recipe: Recipe) -> Journal:
    """The journal of a kept run whose latents are those of a recipe, to read.

    Raises:
        RequestError: If they are another's.
    """
    keys = [key for key in _differing(kept_recipe(path), recipe) if key not in _AFTER_LATENTS]
    if keys:
        raise RequestError(
            f"the latents of {path} are of a picture that differs in {', '.join(keys)}; with "
            "them only how they are decoded and written can be chosen"
        )
    try:
        before = json.loads((path / _CONDITIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is damaged ({_CONDITIONS}: {error})") from error
    return Journal(path, _silent, of=_identity(kept_recipe(path), before), reads=True)


def _locked(path: Path, output: Path) -> FileLock:
    """Make the folder and lock it at once or not at all."""
    for _ in range(_LOCK_TRIES):
        _make(path)
        # A lock that is only the file's being there would stay behind a killed process.
        lock = FileLock(path / _LOCK, timeout=_LOCK_SECONDS, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise BusyError(
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


def _refuse_others(path: Path, recipe: Recipe, conditions: Mapping[str, str] | None) -> None:
    """Refuse to go on where that would mix two pictures, or two ways of rounding."""
    keys = _differing_keys(path / RECIPE, recipe) if (path / RECIPE).exists() else []
    if not keys and conditions is not None:
        keys = _differing_conditions(path / _CONDITIONS, conditions)
    if keys:
        raise RequestError(
            f"{path} is left from a run that differs in {', '.join(keys)}; give the same choices "
            "to go on with it, --restart to start over, or another name with -o"
        )


def _identity(recipe: Recipe, conditions: Mapping[str, str] | None) -> str:
    """What the journal of a run is of."""
    said = json.dumps([recipe.hash, sorted((conditions or {}).items())])
    return digest(said.encode())


def _is_run(names: Iterable[str]) -> bool:
    return any(name in (_LOCK, RECIPE) for name in names)


def _made(path: Path) -> list[Path]:
    """Spools, records, half-written files, and what libvips leaves in place of nameless ones."""
    ends, starts = (_SPOOL_SUFFIX, WRITING_SUFFIX, *SUFFIXES), "vips-"
    return [e for e in path.iterdir() if e.name.endswith(ends) or e.name.startswith(starts)]


def _differing_keys(left: Path, recipe: Recipe) -> list[str]:
    """The choices in which a left recipe differs, with both; all of it if it cannot be read."""
    try:
        before = Recipe.from_fragments(read_recipe_file(left))
    except ConfigError:
        return ["everything: its recipe is damaged"]
    return [
        f"{key} ({_short(getattr(before, key))}, now {_short(getattr(recipe, key))})"
        for key in _differing(before, recipe)
    ]


def _differing(before: Recipe, now: Recipe) -> list[str]:
    """The choices in which two recipes differ."""
    a, b = before.model_dump(), now.model_dump()
    return [key for key in b if key not in CONSEQUENCES and a[key] != b[key]]


def _differing_conditions(left: Path, now: Mapping[str, str]) -> list[str]:
    """The conditions that were others; none where none are known."""
    try:
        before = json.loads(left.read_text(encoding="utf-8"))
        keys = [key for key in now if before.get(key, now[key]) != now[key]]
        return [f"{key} ({before[key]}, now {now[key]})" for key in keys]
    except (OSError, ValueError, AttributeError):
        return []


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
