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
from typing import TYPE_CHECKING, Any

from hirescli.errors import RunError
from hirescli.events import FileWritten, Finalising, Listener
from hirescli.output.containers import (
    jpeg_head,
    jpeg_place,
    jpeg_segments,
    png_chunks,
    png_place,
)
from hirescli.output.metadata import RECIPE_KEY, Texts, describe
from hirescli.output.spool import Spool
from hirescli.units import format_bytes

if TYPE_CHECKING:
    import pyvips

    from hirescli.recipe import Recipe

# Each thread of libvips holds tiles of its own; more than this only costs memory.
_MOST_THREADS = 8
_MM_PER_INCH = 25.4
_LITTLE_ROOM_BYTES = 2**20


# From the first bytes of a file to the range that gives way to ours; None: too few bytes yet.
Place = Callable[[bytes], tuple[int, int] | None]


@dataclass(frozen=True)
class FinishedFile:
    """A file under its final name."""

    path: Path
    bytes: int
    seconds: float
    sha256: str


def finalise(
    spool_path: Path, output: Path, *, recipe: Recipe, listener: Listener | None = None
) -> FinishedFile:
    """Make the output from a complete 8-bit spool. The spool stays.

    An existing output is replaced: whether it may be is asked before a run, not after.

    Args:
        spool_path: A spool of `Spool.create` with 8 bits.
        output: The final name; its bytes depend on the spool and the recipe only.
        recipe: Says format, tiles, compression, quality, dpi and what is embedded.
        listener: Hears `Finalising` and `FileWritten`.

    Raises:
        RunError: If the disk is full or libvips fails. Nothing stands under the final name
            then that did not stand there before, and OUTPUT.partial is gone.
    """
    tell: Listener = listener or (lambda event: None)
    tell(Finalising(path=output, format=recipe.format))
    started = time.monotonic()
    partial = partial_path(output)
    _discard(partial)
    try:
        _write(spool_path, partial, recipe)
        file_bytes, sha256 = _settle(partial)
        os.replace(partial, output)
        _sync_folder(output.parent)
    except OSError as error:
        raise _failed(output, error) from error
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
    try:
        image = _labelled(spool_path, recipe)
        texts = describe(recipe) if recipe.metadata else None
        with _temporary_files_in(spool_path.parent):
            _interruptible(lambda: _SAVERS[recipe.format](image, partial, recipe, texts), image)
    except pyvips.Error as error:
        raise _failed(partial, error) from error


def _labelled(spool_path: Path, recipe: Recipe) -> pyvips.Image:
    """The spool as libvips reads it, with colour profile and resolution."""
    import pyvips

    image = pyvips.Image.new_from_file(str(spool_path), access="sequential")
    # The profile built into libvips is a constant: lcms's own carries the time of day.
    profile = pyvips.Operation.call("profile_load", "srgb")
    image = image.copy(xres=recipe.dpi / _MM_PER_INCH, yres=recipe.dpi / _MM_PER_INCH)
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return image


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


def _save_tiff(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    import pyvips

    if texts:
        image.set_type(pyvips.GValue.gstr_type, "image-description", texts.recipe)
        image.set_type(pyvips.GValue.blob_type, "xmp-data", texts.xmp)
    lossless = recipe.compression in ("deflate", "lzw")
    image.tiffsave(
        str(partial),
        tile=True,
        tile_width=recipe.tile_px,
        tile_height=recipe.tile_px,
        pyramid=True,  # as pages: OpenSlide sees one level only where they are SubIFDs
        bigtiff=True,
        compression=recipe.compression,
        predictor="horizontal" if lossless else "none",
        Q=recipe.quality,
        resunit="inch",
    )


def _save_png(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    chunks = png_chunks(**_fields(texts), recipe_key=RECIPE_KEY) if texts else b""
    _save_stream(image, partial, ".png", chunks, png_place)


def _save_jpeg(image: pyvips.Image, partial: Path, recipe: Recipe, texts: Texts | None) -> None:
    segments = jpeg_segments(**_fields(texts), dpi=recipe.dpi) if texts else b""
    head = jpeg_head(dpi=recipe.dpi) + segments
    _save_stream(image, partial, ".jpg", head, jpeg_place, Q=recipe.quality)


_SAVERS: dict[str, Callable[[pyvips.Image, Path, Recipe, Texts | None], None]] = {
    "tiff": _save_tiff,
    "png": _save_png,
    "jpeg": _save_jpeg,
}


def _fields(texts: Texts) -> dict[str, Any]:
    return {"recipe": texts.recipe, "parameters": texts.parameters, "xmp": texts.xmp}


def _save_stream(
    image: pyvips.Image,
    partial: Path,
    suffix: str,
    insert: bytes,
    place: Place,
    **options: Any,
) -> None:
    import pyvips

    with partial.open("wb") as file:
        writer = _InsertingWriter(file.write, insert, place)
        target = pyvips.TargetCustom()
        target.on_write(writer.write)
        try:
            image.write_to_target(target, suffix, keep="icc", **options)
        finally:
            if writer.error:  # the cause; libvips only knows that writing failed
                raise writer.error
        assert writer.inserted, "the file ended before the place of its texts"


class _InsertingWriter:
    """Passes a stream on and puts bytes in at one place near its start."""

    def __init__(self, write: Callable[[bytes], int], insert: bytes, place: Place) -> None:
        self.error: OSError | None = None
        self.inserted = False
        self._write = write
        self._insert = insert
        self._place = place
        self._head = b""

    def write(self, data: bytes) -> int:
        """Take the next bytes; -1 tells libvips to stop (an exception cannot cross it)."""
        try:
            self._write(bytes(data) if self.inserted else self._with_insert(bytes(data)))
        except OSError as error:
            self.error = error
            return -1
        return len(data)

    def _with_insert(self, data: bytes) -> bytes:
        self._head += data
        place = self._place(self._head)
        if place is None:
            return b""
        self.inserted = True
        return self._head[: place[0]] + self._insert + self._head[place[1] :]


def _settle(partial: Path) -> tuple[int, str]:
    """Bring the file to the disk and hash it while its pages are still in memory."""
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return os.fstat(file.fileno()).st_size, sha256


def _discard(partial: Path) -> None:
    """Remove what there is, and free its disk even while libvips still holds it open."""
    if partial.exists():
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


def _failed(path: Path, error: Exception) -> RunError:
    free_bytes = shutil.disk_usage(path.parent).free
    cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    if free_bytes < _LITTLE_ROOM_BYTES or "No space left" in str(error):
        return RunError(
            f"disk full: {path.parent} has {format_bytes(free_bytes)} free, not enough for"
            f" {path.name}; free some space and run the same command again"
        )
    return RunError(f"cannot write {path}: {cause}")
