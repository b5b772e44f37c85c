"""What a .safetensors file holds, read from its header, and what is wrong with it. No torch.

References:
    The format: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import RequestError

MOST_HEADER_BYTES = 100 * 10**6  # the format's own limit
_LENGTH_BYTES = 8  # of the header, a little-endian integer at the start
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_PICKLE_ENDINGS = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")


@dataclass(frozen=True)
class Tensors:
    """The tensors of one file.

    Attributes:
        path: The file.
        shapes: Of every tensor, by name.
        dtypes: Of every tensor, by name, such as "F16".
        metadata: Words that the writer left.
        size_bytes: Of the file.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    size_bytes: int


class WeightsError(RequestError):
    """A weights file that cannot be what it is said to be."""


def read_tensors(path: Path) -> Tensors:
    """Read and check the header of a file; no tensor is read.

    Raises:
        WeightsError: If the file is missing, empty, truncated or too long, a pickle, a page or
            a pointer in place of weights, or if its header is wrong; names the file and the
            first wrong tensor.
    """
    if path.suffix.lower() in _PICKLE_ENDINGS:
        raise WeightsError(
            f"{path} is a pickle, which could run code when it is loaded; convert it to "
            "safetensors, or find a .safetensors file of the same model"
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
            _check_kind(path, start, size)
            length = int.from_bytes(start[:_LENGTH_BYTES], "little")
            _check_length(path, length, size)
            file.seek(_LENGTH_BYTES)
            raw = file.read(length)
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be read: {error.strerror or error}") from error
    return _checked(path, raw, size - _LENGTH_BYTES - length)


def _check_kind(path: Path, start: bytes, size: int) -> None:
    text = start.lstrip().lower()
    if size == 0:
        raise WeightsError(f"{path} is empty; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path} is a pointer of git-lfs, not the weights; run `git lfs pull` in its folder"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(
            f"{path} is a web page, not weights: what was downloaded was a page about the file "
            "or an error; download the file itself"
        )
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5"):
        raise WeightsError(
            f"{path} is a pickle with the name of a .safetensors file, and a pickle could run "
            "code; convert it to safetensors, or find the model in that format"
        )
    if size < _LENGTH_BYTES + 2:
        raise WeightsError(f"{path} is truncated: {size} bytes hold no header; download it again")


def _check_length(path: Path, length: int, size: int) -> None:
    if length > MOST_HEADER_BYTES:
        raise WeightsError(
            f"{path} is no safetensors file: its header would be {length} bytes long, the format "
            f"allows {MOST_HEADER_BYTES}"
        )
    if length > size - _LENGTH_BYTES:
        raise WeightsError(
            f"{path} is truncated: a header of {length} bytes in a file of {size}; download it "
            "again"
        )


def _checked(path: Path, raw: bytes, data_bytes: int) -> Tensors:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise ValueError("it is no table of tensors")
        metadata = header.pop("__metadata__", {})
        spans = sorted(_spans(header))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the header of {path} is damaged: {error}") from error
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise WeightsError(
                f"the header of {path} is damaged: tensor {name} begins at byte {begin} where "
                f"{end} follows"
            )
        end = stop
        if stop > data_bytes:
            raise WeightsError(
                f"{path} is truncated: tensor {name} ends at byte {stop} of {data_bytes}; "
                "download it again"
            )
    if end != data_bytes:
        raise WeightsError(
            f"{path} has {data_bytes - end} bytes behind its last tensor; download it again"
        )
    return Tensors(
        path,
        {name: tuple(entry["shape"]) for name, entry in header.items()},
        {name: entry["dtype"] for name, entry in header.items()},
        metadata if isinstance(metadata, dict) else {},
        data_bytes + _LENGTH_BYTES + len(raw),
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} is named twice")
    return made


def _spans(header: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
    """Begin and end of every tensor's bytes, with its name."""
    for name, entry in header.items():
        try:
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            bits = _BITS[entry["dtype"]] * math.prod(shape)
            whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"tensor {name} has no shape, type and place that fit") from error
        if not whole or (end - begin) * 8 != bits:
            raise ValueError(
                f"tensor {name} of shape {shape} and type {entry['dtype']} lies in bytes {begin} "
                f"to {end}, which do not hold it"
            )
        yield begin, end, name
