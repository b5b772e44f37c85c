"""CLEAR's weights from files and from the model hub, checked before anything is mounted.

A file is a partial state dict of a transformer: the projections of queries, keys, values and
outputs of every attention, and, with a down factor, `spatial_weight` of their processors. The
published files say window and down factor by their names; those written here also in their
metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hirescli.attention.clear_mount import ClearAdapter, mounted
from hirescli.attention.clear_published import (
    DEFAULT_WINDOW,
    REPOSITORY,
    Variant,
    listed,
    of_file,
    published,
)
from hirescli.errors import RequestError
from hirescli.models import hub
from hirescli.models.safetensors_check import Tensors, read_tensors

OWN = "own"  # in place of weights: those of the transformer itself
_WINDOW, _DOWN_FACTOR = "clear_window", "clear_down_factor"
_FLOATS = ("F16", "BF16", "F32", "F64")
_FLUX_LAYERS = {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24}


def find_weights(
    transformer: nn.Module,
    weights: str | Path | None,
    window: int | None,
    down_factor: int | None,
) -> tuple[Path | None, Variant]:
    """Where the weights are, and what they are for.

    Args:
        transformer: That they shall sit on.
        weights: A file, a name such as "clear-16", the id of a repository with files named as
            those published, `OWN`, or None: as published.
        window: None: as the weights say, else 16.
        down_factor: None: as the weights say, else 1.

    Returns:
        The file, or None for the transformer's own; and window and down factor.

    Raises:
        RequestError: If there are none, or they were made for other settings.
        RunError: If a download fails on its way.
    """
    asked = Variant(window or DEFAULT_WINDOW, down_factor or 1)
    if weights == OWN:
        return None, asked
    named = published(weights) if isinstance(weights, str) else None
    if named is not None:
        _check_settings(named, window, down_factor, f'"{named.name}"')
        return _fetched(REPOSITORY, named), named
    if weights is None:
        return _published_for(transformer, asked)
    path = Path(weights)
    if path.exists() or isinstance(weights, Path) or not hub.HUB_ID.fullmatch(weights):
        return _of_path(path, window, down_factor)
    return _fetched(weights, asked), asked


def load_weights(adapter: ClearAdapter, path: Path) -> None:
    """Read a file and put its tensors on the transformer.

    Raises:
        RequestError: If the file is missing, damaged, or does not hold the tensors of this
            transformer with these settings, and no others.
    """
    adapter.load(read_weights(path, shapes_of(adapter)))


def read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file, if it holds those of these names and shapes, and no others.

    Raises:
        RequestError: As `load_weights`.
    """
    _check_tensors(read_tensors(path), shapes)  # the header, before a tensor is read
    return load_file(path)


def shapes_of(adapter: ClearAdapter) -> dict[str, tuple[int, ...]]:
    """The shapes of what an adapter learns, by its names."""
    return {name: tuple(p.shape) for name, p in adapter.parameters().items()}


def save_clear(transformer: nn.Module, path: str | Path) -> None:
    """Write CLEAR's weights as they sit on a transformer, in the published format and its dtype.

    Args:
        transformer: With CLEAR mounted.
        path: Of the file, `*.safetensors`; what stands there is replaced at the end, whole.

    Raises:
        RequestError: If CLEAR is not mounted, or the name or the folder does not do.
    """
    adapter, path = mounted(transformer), Path(path)
    if adapter is None:
        raise RequestError(
            f"{type(transformer).__name__} has no CLEAR to save; call hirescli.linearize first"
        )
    if path.suffix != ".safetensors":
        raise RequestError(f"{path} does not end in .safetensors, which CLEAR's weights are")
    if not path.parent.is_dir():
        raise RequestError(f"folder {path.parent} does not exist; make it first")
    settings = adapter.settings
    # Cloned where tensors share memory, which the format cannot say.
    tensors = {
        name: p.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, p in adapter.parameters().items()
    }
    write_weights(path, tensors, Variant(settings.window, settings.down_factor))


def write_weights(
    path: Path,
    tensors: dict[str, Tensor],
    variant: Variant,
    words: Mapping[str, str] | None = None,
) -> None:
    """Write a file of weights, whole or not at all.

    Args:
        path: Of the file; what stands there is replaced at the end.
        tensors: By the published names, none sharing memory with another.
        variant: That they are for.
        words: What else the file says, beside window and down factor.
    """
    said = {_WINDOW: str(variant.window), _DOWN_FACTOR: str(variant.down_factor)}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt", **said, **(words or {})})
        with partial.open("r+b") as file:
            _sort_words(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _sort_words(file: BinaryIO) -> None:
    """Put a header's words in order: safetensors writes them in another one every time, and the
    same weights are to be the same bytes.
    """
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(ordered) <= length, "words in another order are as long"
    file.seek(8)
    file.write(ordered.ljust(length))


# Which file


def _published_for(transformer: nn.Module, asked: Variant) -> tuple[Path, Variant]:
    config = getattr(transformer, "config", {})
    if any(config.get(key) != value for key, value in _FLUX_LAYERS.items()):
        raise RequestError(
            f"no CLEAR weights are published for this {type(transformer).__name__}, only for "
            f'FLUX.1; name some with weights=..., or weights="{OWN}" for its own, which are '
            "where distillation starts"
        )
    if published(asked.name) is None:
        raise RequestError(
            f"no CLEAR weights are published with window {asked.window} and down factor "
            f"{asked.down_factor}; there are {listed()}: use one of these, or name others with "
            "weights=..."
        )
    return _fetched(REPOSITORY, asked), asked


def _fetched(repository: str, variant: Variant) -> Path:
    """One file of one commit of a repository, from the cache or the hub."""
    snapshot = hub.resolve(repository, None, what="CLEAR weights", needs=variant.file)
    if variant.file not in snapshot.files and not hub.offline():
        there = [name for name in snapshot.files if of_file(name)]
        raise RequestError(
            f"{repository} has no {variant.file} at {snapshot.commit[:8]}; "
            + (f"it has {', '.join(there)}" if there else "it has no weights of CLEAR")
        )
    folder = hub.fetch(snapshot, [variant.file])
    hub.verify([folder / variant.file])
    hub.remember(snapshot)
    return folder / variant.file


def _of_path(path: Path, window: int | None, down_factor: int | None) -> tuple[Path, Variant]:
    if path.is_dir() or not path.exists():
        raise RequestError(
            f"there are no CLEAR weights {path}; give a .safetensors file, one of {listed()}, or "
            "the id of a repository on the hub"
        )
    said = _said_by(read_tensors(path)) or of_file(path.name)
    if said is None:
        return path, Variant(window or DEFAULT_WINDOW, down_factor or 1)
    _check_settings(said, window, down_factor, str(path))
    return path, said


def _said_by(file: Tensors) -> Variant | None:
    words = [str(file.metadata.get(key, "")) for key in (_WINDOW, _DOWN_FACTOR)]
    if not all(word.isdecimal() and int(word) for word in words):
        return None
    return Variant(*map(int, words))


def _check_settings(said: Variant, window: int | None, down_factor: int | None, what: str) -> None:
    for name, own, asked in (
        ("window", said.window, window),
        ("down factor", said.down_factor, down_factor),
    ):
        if asked not in (None, own):
            raise RequestError(
                f"{what} was made for {name} {own}, not {asked}; leave it out, or use weights "
                f"that were made for {name} {asked}"
            )


# What is in it


def _check_tensors(file: Tensors, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the header with what the transformer asks for, before tensors are read."""
    remedy = "use weights that were made for this model, window and down factor"
    for key, shape in sorted(file.shapes.items()):
        if key not in wanted:
            raise RequestError(
                f"{file.path} holds {key}, which this model has no place for; {remedy}"
            )
        if shape != wanted[key]:
            raise RequestError(
                f"{file.path}: {key} is {shape}, and the model's is {wanted[key]}; {remedy}"
            )
        if file.dtypes[key] not in _FLOATS:
            raise RequestError(
                f"{file.path}: {key} is stored as {file.dtypes[key]}; one of "
                f"{', '.join(_FLOATS)} can be loaded"
            )
    missing: list[str] = [key for key in wanted if key not in file.shapes]
    if missing:
        more = f", and {len(missing) - 1} more" if missing[1:] else ""
        raise RequestError(f"{file.path} is not complete: {missing[0]} is missing{more}; {remedy}")
