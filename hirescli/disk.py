"""Files that stand whole or not at all, also after a power cut; and locks among processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hirescli.errors import BusyError

WRITING_SUFFIX = ".writing"  # of what has no name of its own yet


def write_atomically(path: Path, text: str) -> None:
    """Write a text file, in place of an older one.

    Raises:
        OSError: If the disk is full or fails; the older one stands then.
    """
    writing = path.with_name(path.name + WRITING_SUFFIX)
    with writing.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(writing, path)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(path: Path, busy: str) -> Iterator[None]:
    """A lock's file, for this process only while the context lasts.

    Raises:
        BusyError: If another process has it; says ``busy``.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BusyError(busy) from error
    try:
        yield
    finally:
        lock.release()
