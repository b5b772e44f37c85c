"""Checksums of a weights folder: written when weights are exported, checked when loaded."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SUMS = "SHA256SUMS"


def write_sums(folder: Path) -> None:
    """List the SHA-256 of every file of a folder in its `SHA256SUMS`, as `sha256sum` does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def check_sums(folder: Path) -> None:
    """Check the files of a folder against its `SHA256SUMS`; without one nothing is checked.

    Raises:
        ValueError: If a file differs, or weights are not listed.
        OSError: If a listed file is missing.
    """
    if not (folder / SUMS).exists():
        return
    sums = _read(folder / SUMS)
    for name, wanted in sums.items():
        if sha256(folder / name) != wanted:
            raise ValueError(f"{name} is damaged: its SHA-256 is not the one in {SUMS}")
    for path in sorted(folder.rglob("*.safetensors")):
        name = path.relative_to(folder).as_posix()
        if name not in sums:
            raise ValueError(f"{name} is not listed in {SUMS}")


def _read(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("  ", 1) for line in lines if line]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{path.name} is damaged: a line is no checksum and name")
    return {name: wanted for wanted, name in pairs}


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
