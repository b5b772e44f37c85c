"""Whether outputs and values on disk can go where they shall: checked before anything is made."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from hirescli.errors import RequestError
from hirescli.planning.formats import is_folder, parts
from hirescli.planning.machine import Machine
from hirescli.units import format_bytes

_MOST_NAME_BYTES = 255  # of common file systems
_BESIDE_SUFFIX = ".partial"  # the longest name that is written beside the output


def check_output(output: Path, overwrite: bool) -> None:
    """Check that a picture can be written under a name.

    Raises:
        RequestError: If the name or its folder does not work, or something is there.
    """
    if "\0" in str(output):
        raise RequestError("the output name holds a NUL character; remove it")
    name_bytes = len((output.name + _BESIDE_SUFFIX).encode(errors="surrogateescape"))
    if name_bytes > _MOST_NAME_BYTES:
        raise RequestError(
            f"the output name has {len(output.name.encode(errors='surrogateescape'))} bytes, "
            f"at most {_MOST_NAME_BYTES - len(_BESIDE_SUFFIX)} work; choose a shorter one"
        )
    _check_folder(output.parent)
    if os.path.isdir(output) and not is_folder(output):
        raise RequestError(f"output {output} is a folder; add a file name to it")
    for part in parts(output):
        if os.path.lexists(part) and not overwrite:
            raise RequestError(
                f"output {part} exists; use --overwrite (overwrite=True), or choose another name"
            )
    _check_writable(output.parent)


def check_spill(spill: Path, needed_bytes: int, machine: Machine) -> None:
    """Check that a folder takes so many bytes of values.

    Raises:
        RequestError: If it is none, cannot be written, or has too little room.
    """
    if not spill.is_dir():
        raise RequestError(f"--spill {spill} is no folder; make it, or choose another")
    _check_writable(spill, "--spill")
    free = machine.disk_free_bytes(spill)
    if needed_bytes > free:
        raise RequestError(
            f"needs {format_bytes(needed_bytes)} of disk in --spill {spill}, "
            f"{format_bytes(free)} are free; free some, choose another folder or give more "
            "--memory"
        )


def left_bytes(output: Path) -> int:
    """Bytes that an interrupted run of the same output has left beside it."""
    run = output.with_name(output.name + ".run")
    if not run.is_dir():
        return 0
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


def _check_folder(folder: Path) -> None:
    try:
        is_dir = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError as error:
        raise RequestError(
            f"output folder {folder} does not exist; make it, or choose another"
        ) from error
    except OSError as error:  # a part of it is a file, or its name is longer than any can be
        raise RequestError(
            f"output folder {folder} cannot be used ({error.strerror}); choose another with -o"
        ) from error
    if not is_dir:
        raise RequestError(f"output folder {folder} is a file; choose a folder")


def _check_writable(folder: Path, flag: str = "-o") -> None:
    """Try it: permission bits say nothing about read-only mounts, nor to an administrator."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"folder {folder} cannot be written ({error.strerror}); choose another with {flag}"
        ) from error
