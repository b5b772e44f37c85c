"""Files of tensors that stay as they are, to the stride: what records and snapshots are made of.

The numbers come first, then a JSON text that says where each tensor is, then its length and a
mark. Tensors are written one by one from where they lie, and read one by one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from hirescli.bands.snapshot import Tree
from hirescli.digest import Digest, file_digest
from hirescli.disk import WRITING_SUFFIX, sync_folder

_MARK = b"hiresrec"
_TAIL_BYTES = len(_MARK) + 8


class DamagedError(Exception):
    """A file that is not what was written."""


def write_blob(path: Path, tree: Tree, *, synced: bool = True) -> tuple[str, int]:
    """Write a tree of tensors under a name, whole or not at all.

    Args:
        path: The name.
        tree: Dictionaries with text keys, lists, numbers, text, None, tensors, and functions
            that give a tensor.
        synced: Whether to wait until it is on the disk.

    Returns:
        The file's digest and its bytes.

    Raises:
        OSError: If the disk is full or fails; nothing has the name then.
    """
    writing = path.with_name(path.name + WRITING_SUFFIX)
    try:
        with writing.open("wb", buffering=0) as file:
            out = _Out(file)
            header = json.dumps(out.tree(tree), separators=(",", ":")).encode()
            out.write(header)
            out.write(len(header).to_bytes(8, "little") + _MARK)
            if synced:
                os.fsync(file.fileno())
        os.replace(writing, path)
    except BaseException:
        writing.unlink(missing_ok=True)
        raise
    if synced:
        sync_folder(path.parent)
    return out.digest.text(), out.place


def read_blob(path: Path, digest: str) -> Tree:
    """The tree of a file; its tensors are functions that read them.

    Raises:
        DamagedError: If the file is missing or its bytes have another digest.
    """
    try:
        if file_digest(path) != digest:
            raise DamagedError(f"{path.name} is damaged")
        with path.open("rb") as file:
            file.seek(-_TAIL_BYTES, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            file.seek(-_TAIL_BYTES - length, os.SEEK_END)
            return _tree(json.loads(file.read(length)), path)
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from error


class _Out:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = Digest()
        self.place = 0

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self.digest.add(view)
        self.place += len(view)
        while view:
            view = view[self._file.write(view) :]

    def tree(self, tree: Tree) -> Tree:
        """What JSON says of a tree, its numbers written."""
        if isinstance(tree, dict):
            return {key: self.tree(value) for key, value in tree.items()}
        if isinstance(tree, (list, tuple)):
            return [self.tree(value) for value in tree]
        if callable(tree):
            return self._tensor(tree())
        return self._tensor(tree) if isinstance(tree, Tensor) else tree

    def _tensor(self, tensor: Tensor) -> Tree:
        said = {
            "tensor": self.place,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "device": str(tensor.device),
            "shape": list(tensor.shape),
            "stride": list(tensor.stride()),
        }
        dense = _unexpanded(tensor).permute(_order(tensor)).cpu().contiguous()
        if dense.numel():
            self.write(memoryview(dense.flatten().view(torch.uint8).numpy().data))
        return said


def _order(tensor: Tensor) -> list[int]:
    """The dimensions by their strides, so that dense tensors need no rearranging."""
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda d: (-strides[d], d))


def _unexpanded(tensor: Tensor) -> Tensor:
    """The tensor with one element where an expanded dimension repeats one."""
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _tree(said: Tree, path: Path) -> Tree:
    if isinstance(said, list):
        return [_tree(each, path) for each in said]
    if not isinstance(said, dict):
        return said
    if "tensor" in said:
        read: Callable[[], Tensor] = partial(_read, path, said)
        return read
    return {key: _tree(value, path) for key, value in said.items()}


def _read(path: Path, said: dict[str, Any]) -> Tensor:
    shape, stride = said["shape"], said["stride"]
    repeated = [s == 0 and n > 1 for n, s in zip(shape, stride, strict=True)]
    sizes = [1 if again else n for n, again in zip(shape, repeated, strict=True)]
    order = sorted(range(len(shape)), key=lambda d: (-stride[d], d))
    packed = torch.empty([sizes[d] for d in order], dtype=getattr(torch, said["dtype"]))
    if packed.numel():
        view = memoryview(packed.flatten().view(torch.uint8).numpy().data)
        with path.open("rb", buffering=0) as file:
            file.seek(said["tensor"])
            while view:
                count = file.readinto(view)
                if not count:
                    raise DamagedError(f"{path.name} ends too early")
                view = view[count:]
    made = packed.permute([order.index(d) for d in range(len(order))])
    if any(repeated):
        return made.expand(shape).to(said["device"])
    if list(made.stride()) != stride:  # gaps, or strides of dimensions of size one
        strided = torch.empty_strided(shape, stride, dtype=packed.dtype)
        made = strided.copy_(made)
    return made.to(said["device"])
