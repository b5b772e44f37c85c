"""Bytes of ours in what libvips writes: put in as it streams, or over a mark afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyvips

# From the first bytes of a file to the range that gives way to ours; None: too few bytes yet.
Place = Callable[[bytes], tuple[int, int] | None]
_SEARCHED_BYTES = 2**20


def save_inserting(
    image: pyvips.Image, partial: Path, suffix: str, insert: bytes, place: Place, **options: Any
) -> None:
    """Write an image with bytes put in at one place near its start."""
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


def overwritten(path: Path, mark: bytes, content: bytes) -> None:
    """Put content of the same length over the first place of a mark in a file."""
    assert len(mark) == len(content), f"a mark of {len(mark)} bytes for {len(content)}"
    with path.open("r+b") as file:
        before, place = b"", 0
        while part := file.read(_SEARCHED_BYTES):
            found = (before + part).find(mark)
            if found >= 0:
                file.seek(place - len(before) + found)
                file.write(content)
                return
            place += len(part)
            before = (before + part)[-len(mark) :]
    raise AssertionError(f"{path} holds no mark")


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
