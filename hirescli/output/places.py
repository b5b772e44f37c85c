"""An output on the disk: a file, or a folder of tiles, half-written, whole, hashed, named.

What is being written stands in OUTPUT.partial: the file itself, or a folder with all parts of a
picture of tiles. Only what is whole and on the disk gets its final name; of a Deep Zoom the
`.dzi` comes last, so that where it stands all its tiles do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hirescli.disk import sync_folder
from hirescli.errors import RunError
from hirescli.planning.formats import parts

_REPLACED = "replaced"


def partial_path(output: Path) -> Path:
    """Where an output grows before it gets its name."""
    return output.with_name(output.name + ".partial")


def partial_part(output: Path, part: Path) -> Path:
    """Where a part of an output lies before it gets its name."""
    partial = partial_path(output)
    return partial / part.name if partial.is_dir() else partial


def settle(partial: Path) -> int:
    """Bring what was written to the disk; returns its bytes."""
    total_bytes = 0
    for path in [partial] if partial.is_file() else _files(partial):
        with path.open("r+b") as file:
            os.fsync(file.fileno())
            total_bytes += os.fstat(file.fileno()).st_size
    return total_bytes


def name(partial: Path, output: Path, kept: Path, *, overwrite: bool) -> None:
    """Give a whole output its name; without `overwrite` only if the name is free.

    What an earlier call has named already stays: a call that was cut off is completed by another.

    Args:
        partial: The file, or the folder with the parts.
        output: The final name.
        kept: What the message says still holds the picture.
        overwrite: Whether something of that name is replaced.

    Raises:
        RunError: If the name is taken.
        OSError: If the file system fails.
    """
    if partial.is_file():
        _name_file(partial, output, kept, overwrite=overwrite)
        return
    for part in parts(output):
        if not os.path.lexists(partial / part.name):
            continue
        if os.path.lexists(part):
            if not overwrite:
                raise _appeared(part, kept)
            # Inside the partial folder, and so gone with it.
            (partial / _REPLACED).mkdir(exist_ok=True)
            os.rename(part, partial / _REPLACED / part.name)
        os.rename(partial / part.name, part)
    sync_folder(output.parent)
    discard(partial)


def discard(partial: Path) -> None:
    """Remove what there is, and free its disk even while libvips still holds it open."""
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial, ignore_errors=True)
        return
    if partial.exists() and partial.stat().st_nlink == 1:  # not if it is the output already
        with contextlib.suppress(OSError):
            os.truncate(partial, 0)
    partial.unlink(missing_ok=True)


def sha256_of(output: Path) -> str:
    """The SHA-256 of an output in hexadecimal.

    Of one of several files it is that of the lines "<sha256>  <path>" of all of them, sorted by
    path, relative to the folder that the output lies in: what `sha256sum` prints of them.
    """
    if len(parts(output)) == 1 and not output.is_dir():
        return _sha256(output)
    files = [file for part in parts(output) for file in _files(part)]
    named = sorted((str(file.relative_to(output.parent).as_posix()), file) for file in files)
    listing = "".join(f"{_sha256(file)}  {path}\n" for path, file in named)
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


def _name_file(partial: Path, output: Path, kept: Path, *, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(partial, output)  # unlike renaming, it never replaces
        except OSError as error:
            # Also where a file system has no hard links, or the name is a link to nothing.
            if output.exists() and not output.samefile(partial):
                raise _appeared(output, kept) from error
        else:
            partial.unlink()
            sync_folder(output.parent)
            return
    os.replace(partial, output)
    sync_folder(output.parent)


def _appeared(output: Path, kept: Path) -> RunError:
    return RunError(
        f"output {output} appeared during the run and is not replaced; move it away"
        f" or use --overwrite, and run again; the picture is still in {kept}"
    )


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (each for each in path.rglob("*") if each.is_file())
    else:
        yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
