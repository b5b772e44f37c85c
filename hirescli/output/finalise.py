"""Finished files from the spool: tiled pyramidal BigTIFF, PNG, JPEG and others, by libvips.

libvips reads the spool from top to bottom and holds a few rows of tiles of every level, so
memory grows with the picture's width, not its area; only the encoders of WebP and AVIF hold the
picture. Levels of a pyramid wait for their place in the file: those above 100 MB of pixels
(libvips's VIPS_DISC_THRESHOLD) in temporary files beside the spool, smaller ones in memory.
libvips writes OUTPUT.partial; only what is whole and on the disk gets the final name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hirescli.errors import RunError
from hirescli.events import FileWritten, Finalising, Listener
from hirescli.output.places import discard, name, partial_path, settle, sha256_of
from hirescli.output.savers import SAVERS, labelled
from hirescli.output.spool import Spool
from hirescli.output.texts import Texts, describe
from hirescli.units import format_bytes

if TYPE_CHECKING:
    import pyvips

    from hirescli.recipe import Recipe

# Each thread of libvips holds tiles of its own; more than this only costs memory.
_MOST_THREADS = 8
_LITTLE_ROOM_BYTES = 2**20


@dataclass(frozen=True)
class FinishedFile:
    """An output under its final name.

    Attributes:
        path: The file, or folder.
        bytes: Of all its files.
        seconds: It took.
        sha256: See `sha256_of`.
    """

    path: Path
    bytes: int
    seconds: float
    sha256: str


def finalise(
    spool_path: Path,
    output: Path,
    *,
    recipe: Recipe,
    also: Mapping[Path, Recipe] | None = None,
    texts: Texts | None = None,
    overwrite: bool = False,
    whole: Callable[[], None] | None = None,
    listener: Listener | None = None,
) -> FinishedFile:
    """Make the output, and further files, from a complete spool. The spool stays.

    All are whole before the first gets its name, and the output gets its own last: where it
    stands, all do.

    Args:
        spool_path: A spool of `Spool.create` with at least the bits of each recipe.
        output: The final name; its bytes depend on the spool and the recipe only.
        recipe: Says format, tiles, compression, quality, bits, dpi and what is embedded.
        also: Further files, each with its recipe.
        texts: What is embedded in each; None: what `describe` says of its recipe.
        overwrite: Whether existing files of these names are replaced.
        whole: Called when all are whole and on the disk, before the first gets its name. If a
            signal ends the naming then, what has no name yet is left to be named later.
        listener: Hears `Finalising` and `FileWritten` for each.

    Raises:
        RunError: If the disk is full, libvips fails or an output exists. Nothing stands under
            the output's name then that did not stand there before, and no partial file is left.
    """
    files = {**(also or {}), output: recipe}
    made = finalise_all(
        spool_path, files, texts=texts, overwrite=overwrite, whole=whole, listener=listener
    )
    return made[-1]


def finalise_all(
    spool_path: Path,
    files: Mapping[Path, Recipe],
    *,
    texts: Texts | None = None,
    overwrite: bool = False,
    whole: Callable[[], None] | None = None,
    listener: Listener | None = None,
) -> tuple[FinishedFile, ...]:
    """The same for files that are equals: each gets its name when all are whole, in order."""
    tell: Listener = listener or (lambda event: None)
    made: dict[Path, tuple[int, float]] = {}
    left = False
    try:
        for path, own in files.items():
            tell(Finalising(path=path, format=own.format))
            began = time.monotonic()
            file_bytes = _made(spool_path, path, own, texts)
            made[path] = file_bytes, time.monotonic() - began
        if whole is not None:
            whole()
        finished = []
        for path in files:
            finished.append(_named(path, spool_path, *made[path], overwrite=overwrite))
            seconds = finished[-1].seconds
            tell(FileWritten(path=path, bytes=finished[-1].bytes, seconds=seconds))
        return tuple(finished)
    except BaseException as error:
        left = whole is not None and len(made) == len(files) and not isinstance(error, Exception)
        raise
    finally:
        for path in () if left else files:
            discard(partial_path(path))


def _made(spool_path: Path, output: Path, recipe: Recipe, texts: Texts | None) -> int:
    """Write a partial file, whole and on the disk; returns its bytes."""
    import pyvips

    partial = partial_path(output)
    discard(partial)
    try:
        _write(spool_path, partial, recipe, texts)
        return settle(partial)
    except (OSError, pyvips.Error) as error:
        raise _failed(output, spool_path, error) from error


def _named(
    output: Path, spool_path: Path, file_bytes: int, seconds: float, *, overwrite: bool
) -> FinishedFile:
    try:
        name(partial_path(output), output, spool_path, overwrite=overwrite)
        sha256 = sha256_of(output)
    except OSError as error:
        raise _failed(output, spool_path, error) from error
    return FinishedFile(path=output, bytes=file_bytes, seconds=seconds, sha256=sha256)


def _write(spool_path: Path, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    import pyvips

    with Spool.open(spool_path) as spool:
        assert spool.bits >= recipe.bits, f"{recipe.bits} bits of a spool of {spool.bits}"
    # Nothing is asked of libvips twice, and its cache would hold files open.
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(min(os.cpu_count() or 1, _MOST_THREADS))
    image = labelled(spool_path, recipe)
    said = (texts or describe(recipe)) if recipe.metadata else None
    with _temporary_files_in(spool_path.parent):
        _interruptible(lambda: SAVERS[recipe.format](image, partial, recipe, said), image)


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let libvips put its temporary files where the plan has counted the free disk.

    It reads TMPDIR at every use and knows no other way; /tmp is often a small RAM disk.
    """
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _interruptible(save: Callable[[], None], image: pyvips.Image) -> None:
    """Run `save` so that a signal is answered at once.

    Python runs signal handlers between two instructions of its main thread, and a call into
    libvips is one instruction, seconds long. So it happens in a thread, and the main one waits.
    """
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            save()
        except BaseException as error:  # handed to the waiting thread, whatever it is
            failures.append(error)

    thread = threading.Thread(target=guarded, name="finalise")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(timeout=0.1)
    except BaseException:
        image.set_kill(True)
        thread.join()
        raise
    if failures:
        raise failures.pop()  # a list that still held it would keep the file open in a cycle


def _failed(output: Path, spool_path: Path, error: Exception) -> RunError:
    """Name the fuller of the two disks: temporary files of libvips lie beside the spool."""
    folders = (output.parent, spool_path.parent)
    free_bytes, folder = min((shutil.disk_usage(each).free, each) for each in folders)
    if free_bytes < _LITTLE_ROOM_BYTES or "No space left" in str(error):
        return RunError(
            f"disk full: {folder} has {format_bytes(free_bytes)} free, not enough to finish"
            f" {output.name}; free some space and run the same command again"
        )
    cause = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return RunError(f"cannot write {output}: {cause[0]}")
