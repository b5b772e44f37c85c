"""The spool: a preallocated contiguous BigTIFF that decoded rows are written into.

It is a viewable TIFF from its first moment: a killed run leaves its finished rows readable.
Rows count image rows. Writing is `pwrite` into preallocated blocks, never `mmap`: with `mmap`
a full disk ends the process with SIGBUS instead of an error.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from hirescli.errors import NotFiniteError, RunError
from hirescli.units import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Bits = Literal[8, 16]

# One strip of the whole height, the default of tifffile, makes readers hold the whole picture.
_STRIP_ROWS = 64
_ZERO_CHUNK_BYTES = 8 * 2**20
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Spool:
    """Full-width RGB rows of 8 or 16 bits on disk, written and read in any order.

    Use `Spool.create` or `Spool.open`, best in a `with` statement.

    Attributes:
        path: The file.
        width_px: Columns of the picture.
        height_px: Rows of the picture.
        bits: Bits per sample.
    """

    def __init__(
        self,
        path: Path,
        descriptor: int,
        *,
        width_px: int,
        height_px: int,
        bits: Bits,
        offset: int,
    ) -> None:
        self.path = path
        self.width_px = width_px
        self.height_px = height_px
        self.bits: Bits = bits
        self._descriptor = descriptor
        self._offset = offset

    @classmethod
    def create(cls, path: Path, *, width_px: int, height_px: int, bits: Bits = 8) -> Spool:
        """Make the file and reserve every byte of it; an older file of that name is replaced.

        Raises:
            RunError: If the file system cannot hold it. Nothing is left behind then.
        """
        path.unlink(missing_ok=True)
        total_bytes = spool_bytes(width_px=width_px, height_px=height_px, bits=bits)
        try:
            offset = _write_header(path, width_px=width_px, height_px=height_px, bits=bits)
            descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
            try:
                _reserve(descriptor, offset, total_bytes)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _no_room(error, path, total_bytes) from error
        return cls(
            path, descriptor, width_px=width_px, height_px=height_px, bits=bits, offset=offset
        )

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Spool:
        """Open a spool that `create` made, for reading or for writing too.

        Raises:
            RunError: If the file is missing, no spool, or shorter than its header says.
        """
        width_px, height_px, bits, offset = _read_header(path)
        needed_bytes = offset + spool_bytes(width_px=width_px, height_px=height_px, bits=bits)
        found_bytes = path.stat().st_size
        if found_bytes < needed_bytes:
            raise RunError(
                f"spool {path} is truncated: {found_bytes} bytes of {needed_bytes};"
                " remove it and start again"
            )
        access = os.O_RDWR if writable else os.O_RDONLY
        descriptor = os.open(path, access | getattr(os, "O_BINARY", 0))
        return cls(
            path, descriptor, width_px=width_px, height_px=height_px, bits=bits, offset=offset
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: columns * 3 channels * bytes per sample."""
        return self.width_px * 3 * self.bits // 8

    def write_rows(self, y0: int, rows: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
        """Write rows at their place.

        Args:
            y0: First image row.
            rows: (n, width_px, 3), uint8 or uint16 as `bits` says (see `quantise`).

        Raises:
            RunError: If the disk is full in spite of the reservation, or fails.
        """
        import numpy as np

        expected = (rows.shape[0], self.width_px, 3)
        assert rows.shape == expected, f"rows {rows.shape}, spool takes {expected}"
        assert rows.dtype == f"uint{self.bits}", f"{rows.dtype} rows into {self.bits} bits"
        self._assert_inside(y0, rows.shape[0])
        # The file is little-endian on every machine: same recipe, same bytes.
        ordered = np.ascontiguousarray(rows, dtype=f"<u{self.bits // 8}")
        try:
            _pwrite_all(self._descriptor, ordered.reshape(-1).view(np.uint8).data, self._place(y0))
        except OSError as error:
            raise _no_room(error, self.path, ordered.nbytes) from error

    def read_rows(self, y0: int, n: int) -> NDArray[Any]:
        """Read `n` rows from `y0`: (n, width_px, 3), uint8 or uint16."""
        import numpy as np

        self._assert_inside(y0, n)
        rows = np.empty((n, self.width_px, 3), dtype=f"<u{self.bits // 8}")
        try:
            _pread_all(self._descriptor, rows.reshape(-1).view(np.uint8).data, self._place(y0))
        except OSError as error:
            raise RunError(f"cannot read spool {self.path}: {error}") from error
        return rows.astype(f"u{self.bits // 8}", copy=False)

    def flush(self) -> None:
        """Bring what was written to the disk (fsync)."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise _no_room(error, self.path, self.row_bytes * self.height_px) from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _assert_inside(self, y0: int, n: int) -> None:
        inside = 0 <= y0 <= y0 + n <= self.height_px
        assert inside, f"rows {y0} to {y0 + n} are outside of {self.height_px}"

    def _place(self, y0: int) -> int:
        return self._offset + y0 * self.row_bytes


def spool_bytes(*, width_px: int, height_px: int, bits: Bits) -> int:
    """Bytes of the rows of a spool; the header adds less than 1 in 1000."""
    return width_px * 3 * bits // 8 * height_px


def quantise(rows: NDArray[np.floating[Any]], bits: Bits) -> NDArray[Any]:
    """Round rows in [0, 1] to the levels of a spool; values outside are clipped.

    Args:
        rows: Any shape, float.
        bits: 8 or 16.

    Returns:
        The same shape, uint8 or uint16.

    Raises:
        NotFiniteError: If a value is NaN or infinite.
    """
    import numpy as np

    top = 2**bits - 1
    levels: NDArray[np.float32] = np.multiply(rows, np.float32(top), dtype=np.float32)
    if not np.isfinite(levels).all():
        raise NotFiniteError("rows that hold NaN or infinity")
    np.clip(levels, 0, top, out=levels)
    np.rint(levels, out=levels)
    return levels.astype(np.uint8 if bits == 8 else np.uint16)


def _write_header(path: Path, *, width_px: int, height_px: int, bits: Bits) -> int:
    import tifffile

    place = tifffile.imwrite(
        path,
        shape=(height_px, width_px, 3),
        dtype=f"uint{bits}",
        bigtiff=True,
        byteorder="<",
        photometric="rgb",
        rowsperstrip=_STRIP_ROWS,
        metadata=None,
        software=False,
        returnoffset=True,
    )
    assert place is not None  # `returnoffset` of a contiguous picture
    return int(place[0])


def _read_header(path: Path) -> tuple[int, int, Bits, int]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            shape, dtype, offset = page.shape, str(page.dtype), page.dataoffsets[0]
            contiguous = bool(page.is_contiguous)
    except Exception as error:  # tifffile raises errors of many kinds for damaged files
        raise RunError(f"{path} is no spool ({error}); remove it and start again") from error
    if not contiguous or len(shape) != 3 or shape[2] != 3 or dtype not in ("uint8", "uint16"):
        raise RunError(f"{path} is no spool ({shape} {dtype}); remove it and start again")
    return int(shape[1]), int(shape[0]), 8 if dtype == "uint8" else 16, int(offset)


def _reserve(descriptor: int, offset: int, total_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, offset, total_bytes)
        return
    # Systems without it (macOS, Windows): only written bytes are reserved bytes.
    zeros = memoryview(bytes(_ZERO_CHUNK_BYTES))
    for start in range(0, total_bytes, _ZERO_CHUNK_BYTES):
        _pwrite_all(descriptor, zeros[: total_bytes - start], offset + start)


def _pwrite_all(descriptor: int, data: memoryview, place: int) -> None:
    while data:  # one call writes at most 2 GiB
        written = os.pwrite(descriptor, data, place)
        data, place = data[written:], place + written


def _pread_all(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        read = os.preadv(descriptor, [data], place)
        if read == 0:
            raise OSError(errno.EIO, "the file ends too early")
        data, place = data[read:], place + read


def _no_room(error: OSError, path: Path, needed_bytes: int) -> RunError:
    if error.errno not in _DISK_FULL:
        return RunError(f"cannot write {path}: {error.strerror or error}")
    free_bytes = shutil.disk_usage(path.parent).free
    return RunError(
        f"disk full: {path} needs {format_bytes(needed_bytes)},"
        f" {path.parent} has {format_bytes(free_bytes)} free;"
        " free some space or choose another folder with -o"
    )
