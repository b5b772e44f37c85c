"""Fingerprints of bytes: fast ones for what we write and read ourselves (XXH3, 128 bits).

What people compare, the SHA-256 of a finished file, is made where it is finished.
"""

from __future__ import annotations

from pathlib import Path

import xxhash

_CHUNK_BYTES = 4 * 2**20


class Digest:
    """Of bytes that come in pieces."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, data: bytes | memoryview) -> None:
        """Go on with more bytes."""
        self._state.update(data)

    def text(self) -> str:
        """Of all bytes so far: 32 hexadecimal digits."""
        return self._state.hexdigest()


def digest(data: bytes | memoryview) -> str:
    """Of bytes: 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(data)


def file_digest(path: Path) -> str:
    """Of a file, read piece by piece.

    Raises:
        OSError: If it cannot be read.
    """
    made = Digest()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(_CHUNK_BYTES)
        while count := file.readinto(buffer):
            made.add(memoryview(buffer)[:count])
    return made.text()
