"""Files that stand whole or not at all, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path

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
