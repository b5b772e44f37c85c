"""Stores: where values rest between passes, whole, as the bands they were made in.

A store's value takes bands from top to bottom, gives any rows back bit for bit, and lets go of
rows that nobody reads any more.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from hirescli.bands.snapshot import StaleError, Tree
from hirescli.bands.tensor import Node
from hirescli.digest import digest
from hirescli.errors import RunError
from hirescli.units import format_bytes

_RECORDED_BYTES = 16 * 2**20  # that a record takes from the disk at a time
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass
class Ledger:
    """Counts the bytes of every store, now and at their peak."""

    now: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)

    def add(self, store: str, count_bytes: int) -> None:
        """Count bytes that are taken, or, below zero, given back."""
        self.now[store] = self.now.get(store, 0) + count_bytes
        self.peak[store] = max(self.peak.get(store, 0), self.now[store])


class Kept(Protocol):
    """One value in a store."""

    def put(self, lo: int, hi: int, band: Tensor) -> None:
        """Keep rows lo to hi; they follow those kept before."""

    def rows(self, lo: int, hi: int) -> Tensor:
        """Rows lo to hi."""

    def free(self, below: int) -> None:
        """Rows above `below` are read no more."""

    def close(self, *, leave: bool = False) -> None:
        """Nothing is read any more; a file with a name may be left for a later process."""

    def state(self) -> Tree:
        """What is kept, for `restore`: rows in memory, and where those on disk are."""

    def restore(self, tree: Tree) -> None:
        """Keep what another value of the same node and store kept.

        Raises:
            StaleError: If rows on disk are gone or damaged.
        """

    def record(self) -> Tree:
        """All rows, wherever they rest, for `replay`."""

    def replay(self, tree: Tree) -> None:
        """Keep what another value of the same node recorded."""


def new_value(
    node: Node, store: str, spill: Path, ledger: Ledger, *, name: str | None = None
) -> Kept:
    """A place in a store for the value of a node.

    Args:
        node: Whose rows will be kept.
        store: "device", "host" or "disk".
        spill: Folder of the disk store.
        ledger: Counts.
        name: Of the file, which then outlives the process; None: it has none.

    Raises:
        RunError: If the disk has no room.
    """
    assert node.grid is not None, "only values with rows are kept"

    def count(count_bytes: int) -> None:
        ledger.add(store, count_bytes)

    if store == "disk":
        return DiskValue(
            spill, shape=node.shape, dtype=node.dtype, dim=node.grid.dim, rows=node.grid.rows,
            device=node.device, count=count, name=name,
        )  # fmt: skip
    if store == "host" and node.device.type != "cpu":
        bus = _Bus(node.device)
        return MemoryValue(
            node.grid.dim, node.per_row, count, place=bus.to_host, fetch=bus.to_device
        )
    return MemoryValue(node.grid.dim, node.per_row, count)


class _Bus:
    """Copies between a GPU and pinned host memory, on a stream of their own.

    Work is queued far ahead of the GPU, so the copies of one band run beside the kernels of
    another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _copy_stream(device)

    def to_host(self, band: Tensor) -> Tensor:
        """A pinned copy, which is read only through `to_device`."""
        pinned = torch.empty_like(band, device="cpu", pin_memory=True)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            pinned.copy_(band, non_blocking=True)
        band.record_stream(self._stream)  # its memory is not used anew before the copy is done
        return pinned

    def to_device(self, pinned: Tensor) -> Tensor:
        """A copy on the device, ready for the current stream."""
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            band = pinned.to(self._device, non_blocking=True)
        current.wait_stream(self._stream)
        band.record_stream(current)
        return band


@lru_cache(maxsize=16)
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class _RowsFirst:
    """How bands of one value lie in a store: rows one behind the other.

    The other dimensions lie as they do in the first band, so that channels-last bands are
    written and read without rearranging; those of size one come before the rows. Bands come
    back with the same strides from every store: the last bit of a product can depend on them.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._order: list[int] = []
        self.rows_dim = 0

    def pack(self, band: Tensor) -> Tensor:
        """The band with its rows first, dense."""
        if not self._order:
            others = [d for d in range(band.ndim) if d != self._dim]
            ones = [d for d in others if band.shape[d] == 1]
            strides = band.stride()
            rest = sorted(set(others) - set(ones), key=lambda d: (-strides[d], d))
            self._order, self.rows_dim = [*ones, self._dim, *rest], len(ones)
        return band.permute(self._order).contiguous()

    def unpack(self, packed: Tensor) -> Tensor:
        """The band as it was."""
        # Going through a flat view gives dimensions of size one their usual strides.
        dense = packed.flatten().view(packed.shape)
        return dense.permute([self._order.index(d) for d in range(len(self._order))])

    @property
    def order(self) -> list[int]:
        """The dimensions as they lie; empty before the first band."""
        return self._order

    def restore(self, order: Sequence[int]) -> None:
        """Lay out as another layout did."""
        self._order = list(order)
        self.rows_dim = self._order.index(self._dim) if order else 0

    def shape(self, whole: torch.Size, rows_size: int) -> list[int]:
        """The packed shape of a band with `rows_size` elements in the rows' dimension."""
        assert self._order, "nothing is kept yet"
        return [rows_size if d == self._dim else whole[d] for d in self._order]


@dataclass
class MemoryValue:
    """Bands in memory: the very tensors that were computed, or copies on the host.

    Attributes:
        dim, per_row: Where the rows are.
        count: Is told of bytes taken and given back.
        place: Moves a band to where it rests.
        fetch: Moves a band to where it is computed with.
    """

    dim: int
    per_row: int
    count: Callable[[int], None]
    place: Callable[[Tensor], Tensor] = lambda band: band
    fetch: Callable[[Tensor], Tensor] = lambda band: band
    _pieces: list[tuple[int, int, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._layout = _RowsFirst(self.dim)

    def put(self, lo: int, hi: int, band: Tensor) -> None:
        """Keep rows; a view of something larger is copied."""
        packed = self._layout.pack(band)
        if packed.untyped_storage().nbytes() > packed.numel() * packed.element_size():
            packed = packed.clone()
        while self._pieces and self._pieces[-1][1] > lo:  # given again after memory ran out
            _, _, old = self._pieces.pop()
            self.count(-old.numel() * old.element_size())
        packed = self.place(packed)
        self.count(packed.numel() * packed.element_size())
        self._pieces.append((lo, hi, packed))

    def rows(self, lo: int, hi: int) -> Tensor:
        """A view of what is kept, or a copy across bands."""
        dim = self._layout.rows_dim
        parts = [self.fetch(part) for _, _, part in cut(self._pieces, lo, hi, dim, self.per_row)]
        return self._layout.unpack(parts[0] if len(parts) == 1 else torch.cat(parts, dim))

    def free(self, below: int) -> None:
        """Let go of pieces that end above."""
        while self._pieces and self._pieces[0][1] <= below:
            _, _, band = self._pieces.pop(0)
            self.count(-band.numel() * band.element_size())

    def close(self, *, leave: bool = False) -> None:
        """Let go of everything."""
        if self._pieces:
            self.free(self._pieces[-1][1])

    def state(self) -> Tree:
        """The rows that are held."""
        pieces = [[lo, hi, band] for lo, hi, band in self._pieces]
        return {"order": self._layout.order, "pieces": pieces}

    def restore(self, tree: Tree) -> None:
        """Hold them again."""
        self.close()
        self._layout.restore(tree["order"])
        for lo, hi, read in tree["pieces"]:
            band = read()
            self.count(band.numel() * band.element_size())
            self._pieces.append((lo, hi, band))

    record, replay = state, restore


def cut(
    pieces: list[tuple[int, int, Tensor]], lo: int, hi: int, dim: int, per_row: int
) -> list[tuple[int, int, Tensor]]:
    """Rows lo to hi of pieces, as views."""
    found = []
    for a, b, band in pieces:
        first, last = max(a, lo), min(b, hi)
        if first >= last:
            continue
        if (first, last) != (a, b):
            band = band.narrow(dim, (first - a) * per_row, (last - first) * per_row)
        found.append((first, last, band))
    return found


class DiskValue:
    """Rows in a file whose room is taken at once.

    Without a name the file ends with the process.

    Args:
        folder: On the file system to use.
        shape: Of the whole value.
        dtype: Of its numbers.
        dim: The dimension that holds the rows.
        rows: Rows of the whole value.
        device: Where rows are computed with.
        count: Is told of bytes taken and given back.
        name: Of the file; None: it has none.

    Raises:
        RunError: If the file system has no room.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shape: torch.Size,
        dtype: torch.dtype,
        dim: int,
        rows: int,
        device: torch.device,
        count: Callable[[int], None],
        name: str | None = None,
    ) -> None:
        self._shape, self._dtype, self._device, self._count = shape, dtype, device, count
        self._layout = _RowsFirst(dim)
        self._per_row = shape[dim] // rows
        self._row_bytes = shape.numel() * dtype.itemsize // rows
        self._bytes = self._row_bytes * rows
        self._path = None if name is None else folder / name
        self._sums: list[tuple[int, int, str]] = []  # of the bands that were written
        try:
            self._file = _opened(folder, self._path)
            try:
                _reserve(self._file.fileno(), self._bytes)
            except OSError:
                self._file.close()
                raise
        except OSError as error:
            raise _no_room(error, folder, self._bytes) from error
        count(self._bytes)

    def put(self, lo: int, hi: int, band: Tensor) -> None:
        """Write rows at their place."""
        view = _bytes_of(self._layout.pack(band).cpu())
        if self._path is not None:
            while self._sums and self._sums[-1][1] > lo:  # given again
                self._sums.pop()
            self._sums.append((lo, hi, digest(view)))
        place = lo * self._row_bytes
        while view:
            written = os.pwrite(self._file.fileno(), view, place)
            view, place = view[written:], place + written

    def rows(self, lo: int, hi: int) -> Tensor:
        """Rows as they were written."""
        return self._layout.unpack(self._packed(lo, hi).to(self._device))

    def free(self, below: int) -> None:
        """The file keeps its size until `close`."""

    def close(self, *, leave: bool = False) -> None:
        """Give the room back."""
        if not self._file.closed:
            self._file.close()
            self._count(-self._bytes)
            if self._path is not None and not leave:
                self._path.unlink(missing_ok=True)

    def state(self) -> Tree:
        """The sums of the bands in the file, which is on the disk when this returns."""
        os.fsync(self._file.fileno())
        return {"order": self._layout.order, "sums": [list(each) for each in self._sums]}

    def restore(self, tree: Tree) -> None:
        """Check that the bands of another process are there."""
        self._layout.restore(tree["order"])
        self._sums = [(lo, hi, text) for lo, hi, text in tree["sums"]]
        for lo, hi, text in self._sums:
            if digest(_bytes_of(self._packed(lo, hi))) != text:
                raise StaleError(f"{self._path} has other rows {lo} to {hi} than were written")

    def record(self) -> Tree:
        """All rows, each piece read when it is written."""
        rows, step = self._bytes // self._row_bytes, max(1, _RECORDED_BYTES // self._row_bytes)
        cuts = [(lo, min(lo + step, rows)) for lo in range(0, rows, step)]
        pieces = [[lo, hi, partial(self._packed, lo, hi)] for lo, hi in cuts]
        return {"order": self._layout.order, "pieces": pieces}

    def replay(self, tree: Tree) -> None:
        """Write them again."""
        self._layout.restore(tree["order"])
        for lo, hi, read in tree["pieces"]:
            self.put(lo, hi, self._layout.unpack(read()))

    def _packed(self, lo: int, hi: int) -> Tensor:
        shape = self._layout.shape(self._shape, (hi - lo) * self._per_row)
        packed = torch.empty(shape, dtype=self._dtype)
        view, place = _bytes_of(packed), lo * self._row_bytes
        while view:
            count = os.preadv(self._file.fileno(), [view], place)
            if count == 0:
                raise RunError("a spilled value is shorter than it was written")
            view, place = view[count:], place + count
        return packed


def _opened(folder: Path, path: Path | None) -> IO[bytes]:
    """A file to read and write; one that a killed process left keeps its bytes."""
    if path is None:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)


def _bytes_of(dense: Tensor) -> memoryview:
    return memoryview(dense.flatten().view(torch.uint8).numpy().data)


def _reserve(descriptor: int, count_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, count_bytes)
    else:
        os.truncate(descriptor, count_bytes)


def _no_room(error: OSError, folder: Path, count_bytes: int) -> RunError:
    if error.errno in _DISK_FULL:
        return RunError(
            f"no room in {folder} to spill {format_bytes(count_bytes)}; free some, choose "
            "another folder with --spill (spill=...), or give more --memory"
        )
    return RunError(f"cannot spill to {folder}: {error}")
