"""Calls that end anywhere, and go on in another process bit for bit."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hirescli.bands.call import StreamedCall, replaced_forward
from hirescli.bands.engine import Engine, banded_tensor
from hirescli.bands.execute import Execution
from hirescli.errors import RunError
from hirescli.planning.passes import Store
from hirescli.runs import journal as journal_module
from hirescli.runs.journal import CallRecord, Journal

sys.path.append(str(Path(__file__).parent.parent / "bands"))
import models

SIZE = (16, 12)
MODULES: dict[str, Callable[[], Any]] = {
    "denoiser": models.sd15_unet,
    "linear denoiser": models.linfusion_unet,
}
STORES = ("memory", "disk")


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def every_band_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(journal_module, "_SHARE", 1e9)


def given() -> tuple[Tensor, dict[str, Any]]:
    text = models.draw((1, models.TEXT_TOKENS, models.TEXT_CHANNELS), 5)
    return models.picture(1, 4, SIZE, 3), {"timestep": 7, "encoder_hidden_states": text}


def made(module: Any, folder: Path, store: str, warned: list[str]) -> Tensor:
    """One call of a fresh process: what is kept, as it is read."""
    journal = Journal(folder, warned.append)
    stores = (Store("host", 10**9), Store("disk", 10**12, 5e8))
    engine = Engine(
        stores, rows=5, keep_in=STORES.index(store), spill=folder, journal=journal.stage(0)
    )
    call = StreamedCall(
        "unet", module, engine,
        give=lambda tensors: engine.keep(tensors, stores[STORES.index(store)].name, record="call"),
    )  # fmt: skip
    sample, named = given()
    with torch.no_grad(), replaced_forward(module, call):
        (kept,) = module(banded_tensor(sample), **named, return_dict=False)
    (whole,) = Engine(stores, rows=5).whole([kept])
    return whole


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ends the process behind as many snapshots as the list's only number says."""
    left = [1 << 30]
    save = CallRecord.save

    def counted(record: CallRecord, tree: Any) -> None:
        save(record, tree)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(CallRecord, "save", counted)
    return left


@pytest.mark.parametrize("stores", STORES)
@pytest.mark.parametrize("kind", MODULES)
def test_a_call_goes_on_bit_for_bit(
    tmp_path: Path, saves: list[int], kind: str, stores: str
) -> None:
    module, warned = MODULES[kind](), []
    whole = made(module, tmp_path / mkdir(tmp_path, "whole"), stores, warned)
    count = (1 << 30) - saves[0]
    assert count > 20
    for step in (7, 31):
        folder = tmp_path / mkdir(tmp_path, f"cut-{step}")
        ends = 0
        while True:
            saves[0] = step
            try:
                again = made(module, folder, stores, warned)
                break
            except Killed:
                ends += 1
        assert ends >= count // step - 1
        assert torch.equal(again, whole)
        # The record answers, and computes nothing.
        saves[0] = 1
        assert torch.equal(made(module, folder, stores, warned), whole)
    assert not warned


def mkdir(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return name


@pytest.mark.parametrize("stores", STORES)
def test_damaged_files_are_found_and_made_again(
    tmp_path: Path, saves: list[int], stores: str
) -> None:
    module, warned = models.sd15_unet(), []
    whole = made(module, tmp_path / mkdir(tmp_path, "whole"), stores, warned)
    folder = tmp_path / mkdir(tmp_path, "cut")
    for end in (9, 1 << 30):
        saves[0] = end
        with contextlib.suppress(Killed):
            made(module, folder, stores, warned)
        for path in sorted(folder.iterdir()):
            if path.suffix in (".record", ".snapshot", ".value"):
                flip(path, path.stat().st_size // 3)
        saves[0] = 1 << 30
        assert torch.equal(made(module, folder, stores, warned), whole)
    assert any("damaged" in each for each in warned)


def test_a_full_disk_costs_snapshots_only(
    file_system: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, saved, save = file_system("8m"), [], CallRecord.save

    def scarce(record: CallRecord, tree: Any) -> bool:
        if len(saved) == 9:
            free = os.statvfs(folder)
            (folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
        saved.append(save(record, tree))
        return saved[-1]

    monkeypatch.setattr(CallRecord, "save", scarce)
    module, warned = models.sd15_unet(), []
    result = made(module, folder, "memory", warned)
    assert saved == [True] * 9 + [False]
    assert len(warned) == 1
    assert "the run goes on" in warned[0]
    assert torch.equal(result, made(module, tmp_path, "memory", []))


def test_an_error_leaves_what_a_snapshot_speaks_of(
    tmp_path: Path, saves: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, warned = models.sd15_unet(), []
    whole = made(module, tmp_path / mkdir(tmp_path, "whole"), "disk", warned)
    monkeypatch.setattr(sys.modules[__name__], "Killed", RunError)
    saves[0] = 12
    with pytest.raises(RunError):
        made(module, tmp_path / mkdir(tmp_path, "cut"), "disk", warned)
    begun, begin = [], Execution._begun
    monkeypatch.setattr(Execution, "_begun", lambda run: begun.append(begin(run)) or begun[-1])
    assert torch.equal(made(module, tmp_path / "cut", "disk", warned), whole)
    assert begun[0] != (1, None)  # it went on
    assert not warned


def test_a_torn_journal_counts_to_its_last_whole_line(tmp_path: Path, saves: list[int]) -> None:
    module, warned = models.sd15_unet(), []
    whole = made(module, tmp_path / mkdir(tmp_path, "whole"), "memory", warned)
    folder = tmp_path / mkdir(tmp_path, "cut")
    saves[0] = 9
    with pytest.raises(Killed):
        made(module, folder, "memory", warned)
    lines = folder / journal_module.JOURNAL
    for damage in (
        lambda text: text[:-20],
        lambda text: text + b'{"sum":"',
        flipped,
        lambda _: b"",
    ):
        lines.write_bytes(damage(lines.read_bytes()))
        saves[0] = 3
        with pytest.raises(Killed):
            made(module, folder, "memory", warned)
    saves[0] = 1 << 30
    assert torch.equal(made(module, folder, "memory", warned), whole)


def flipped(text: bytes) -> bytes:
    middle = len(text) // 2
    return text[:middle] + bytes([text[middle] ^ 1]) + text[middle + 1 :]


def flip(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 4]))
