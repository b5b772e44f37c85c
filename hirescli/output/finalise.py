"""The finished file from the spool: tiled pyramidal BigTIFF, PNG or JPEG by libvips.

libvips reads the spool from top to bottom and holds a few rows of tiles of every level, so
memory grows with the picture's width, not its area. Levels of a pyramid wait for their place
in the file: those above 100 MB of pixels (libvips's VIPS_DISC_THRESHOLD) in temporary files
beside the spool, smaller ones in memory. libvips writes OUTPUT.partial; only a file that is
whole and on the disk gets the final name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hirescli.errors import RunError
from hirescli.events import FileWritten, Finalising, Listener
from hirescli.output.metadata import describe
from hirescli.output.savers import SAVERS, labelled
from hirescli.output.spool import Spool
from hirescli.units import format_bytes

if TYPE_CHECKING:
    import pyvips

    from hirescli.recipe import Recipe

# Each thread of libvips holds tiles of its own; more than this only costs memory.
_MOST_THREADS = 8
_LITTLE_ROOM_BYTES = 2**20


@dataclass(frozen=True)
class FinishedFile:
    """A file under its final name."""

    path: Path
    bytes: int
    seconds: float
    sha256: str


def finalise(
    spool_path: Path,
    output: Path,
    *,
    recipe: Recipe,
    overwrite: bool = False,
    listener: Listener | None = None,
) -> FinishedFile:
    """Make the output from a complete 8-bit spool. The spool stays.

    Args:
        spool_path: A spool of `Spool.create` with 8 bits.
        output: The final name; its bytes depend on the spool and the recipe only.
        recipe: Says format, tiles, compression, quality, dpi and what is embedded.
        overwrite: Whether an existing output is replaced.
        listener: Hears `Finalising` and `FileWritten`.

    Raises:
        RunError: If the disk is full, libvips fails or the output exists. Nothing stands under
            the final name then that did not stand there before, and OUTPUT.partial is gone.
    """
    import pyvips

    tell: Listener = listener or (lambda event: None)
    tell(Finalising(path=output, format=recipe.format))
    started = time.monotonic()
    partial = partial_path(output)
    _discard(partial)
    try:
        _write(spool_path, partial, recipe)
        file_bytes, sha256 = _settle(partial)
        _name(partial, output, spool_path, overwrite=overwrite)
        _sync_folder(output.parent)
    except (OSError, pyvips.Error) as error:
        raise _failed(output, spool_path, error) from error
    finally:
        _discard(partial)
    seconds = time.monotonic() - started
    tell(FileWritten(path=output, bytes=file_bytes, seconds=seconds))
    return FinishedFile(path=output, bytes=file_bytes, seconds=seconds, sha256=sha256)


def partial_path(output: Path) -> Path:
    """Where an output grows before it gets its name."""
    return output.with_name(output.name + ".partial")


def _write(spool_path: Path, partial: Path, recipe: Recipe) -> None:
    import pyvips

    with Spool.open(spool_path) as spool:
        assert spool.bits == 8, f"outputs are made from 8-bit spools, {spool_path} has 16"
    # Nothing is asked of libvips twice, and its cache would hold files open.
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(min(os.cpu_count() or 1, _MOST_THREADS))
    image = labelled(spool_path, recipe)
    texts = describe(recipe) if recipe.metadata else None
    with _temporary_files_in(spool_path.parent):
        _interruptible(lambda: SAVERS[recipe.format](image, partial, recipe, texts), image)


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


def _settle(partial: Path) -> tuple[int, str]:
    """Bring the file to the disk and hash it while its pages are still in memory."""
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, sha256


def _name(partial: Path, output: Path, spool_path: Path, *, overwrite: bool) -> None:
    """Give the whole file its name, atomically; without `overwrite` only if the name is free."""
    if not overwrite:
        try:
            os.link(partial, output)  # unlike renaming, it never replaces
        except OSError as error:
            # Also where a file system has no hard links, or the name is a link to nothing.
            if output.exists():
                raise RunError(
                    f"output {output} appeared during the run and is not replaced; move it away"
                    f" or use --overwrite, and run again; the picture is still in {spool_path}"
                ) from error
        else:
            partial.unlink()
            return
    os.replace(partial, output)


def _discard(partial: Path) -> None:
    """Remove what there is, and free its disk even while libvips still holds it open."""
    if partial.exists() and partial.stat().st_nlink == 1:  # not if it is the output already
        with contextlib.suppress(OSError):
            os.truncate(partial, 0)
    partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Without this a power cut can undo the renaming."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
