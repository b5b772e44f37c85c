"""Shards that are damaged, or of something else, are named before anything learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hirescli.errors import RequestError
from hirescli.training.dataset import load_shard


def spoil(path: Path, how: str) -> Path:
    """Make a whole shard wrong."""
    beside = path.with_suffix(".json")
    np.save(path, np.zeros((2, 256, 256, 3), np.uint8))
    beside.write_text(json.dumps([["a lake"], ["water"]]))
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "bytes":
        path.write_bytes(b"no array")
    elif how == "of nothing":
        path.write_bytes(b"")
    elif how == "without pictures":
        np.save(path, np.zeros((0, 256, 256, 3), np.uint8))
    elif how == "small":
        np.save(path, np.zeros((2, 128, 128, 3), np.uint8))
    elif how == "alone":
        beside.unlink()
    elif how == "fewer captions":
        beside.write_text('[["a lake"]]')
    else:
        beside.write_text(how)
    return path


FAULTS = {
    "cut off": "wide-00000.npy cannot be read", "bytes": "wide-00000.npy cannot be read",
    "of nothing": "wide-00000.npy cannot be read",
    "without pictures": r"holds uint8 \(0, 256, 256, 3\)",
    "small": r"holds uint8 \(2, 128, 128, 3\)", "alone": "wide-00000.json of a shard cannot be",
    "fewer captions": "2 pictures and 1 captions", "no json": "wide-00000.json of a shard cannot",
    '["a lake", "water"]': "no list of lists", "[[], [1]]": "no list of lists",
    "7": "no list of lists",
}  # fmt: skip


@pytest.mark.parametrize("how", FAULTS)
def test_damaged_shards_are_named(tmp_path: Path, how: str) -> None:
    path = spoil(tmp_path / "wide-00000.npy", how)
    with pytest.raises(RequestError, match=FAULTS[how]):
        load_shard(path)


@pytest.mark.parametrize("how", ["without pictures", "bytes"])
def test_trainings_refuse_them(hires: Callable, tmp_path: Path, how: str) -> None:
    spoil(tmp_path / "wide-00000.npy", how)
    ran = hires("train", "autoencoder", tmp_path, "ae.pt", "--held-out", tmp_path)
    assert ran.code == 2, ran.err
    assert "wide-00000.npy" in ran.err
    assert not Path("ae.pt").exists()
