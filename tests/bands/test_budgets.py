"""Budgets of memory and disk: the least that is named is enough, and less changes no result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from agreement import assert_exact, trace_of
from models import FAMILIES, Family

import hirescli
from hirescli.errors import HiresError, RequestError, RunError
from hirescli.units import parse_bytes

AMOUNT = re.compile(r"\d+(?:\.\d+)? ?(?:bytes|[kMGT]i?B)")
ROUNDED_BYTES = 60_000  # an amount such as 612.4 MB is known to a tenth
BUDGETS = {
    "SD15": (24, 16),
    "KL_DECODE": (32, 24),
    "KL_ENCODE": (256, 192),
    "TINY_DECODE": (32, 24),
}


def needed(family: Family, inputs: models.Inputs, spill: Path) -> str:
    """The least budget, as the refusal of one byte names it."""
    with pytest.raises(RequestError) as caught:
        _within(family, inputs, 1, spill)
    amounts: list[str] = AMOUNT.findall(str(caught.value))
    assert amounts, f"no amount in {caught.value}"
    return max(amounts, key=_bytes)


def _bytes(text: str) -> int:
    return 0 if text == "0 bytes" else parse_bytes(text.replace(" bytes", ""))


@torch.no_grad()
def _within(
    family: Family, inputs: models.Inputs, memory: int | str, spill: Path, **options: Any
) -> tuple[models.Outputs, Any]:
    module = family.module()
    with hirescli.stream(module, memory=memory, spill=spill, **options) as report:
        return family.call(module, inputs), report


def just_enough(
    family: Family, inputs: models.Inputs, spill: Path, more_bytes: int = 0, **options: Any
) -> tuple[models.Outputs, Any, int]:
    """A call within the least budget and a little more.

    On a CPU the budget is that of the process, which itself may grow from one call to the next.
    """
    for _ in range(3):
        memory = _bytes(needed(family, inputs, spill)) + ROUNDED_BYTES + more_bytes
        try:
            made, report = _within(family, inputs, memory, spill, **options)
        except RequestError as error:
            refused = error
        else:
            return made, report, memory
    raise refused


@pytest.mark.parametrize("name", BUDGETS)
def test_least_budget_is_named_and_is_enough(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    inputs = family.inputs(BUDGETS[name], 1, 1)
    made, report, memory = just_enough(family, inputs, tmp_path)
    assert max(report.peak_device_bytes, report.peak_host_bytes) <= memory
    assert_exact(made, family.reference(inputs))
    with pytest.raises(RequestError):
        _within(family, inputs, int(0.9 * memory), tmp_path)
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["SD15", "KL_DECODE"])
def test_small_budgets_equal_plain(name: str, tmp_path: Path) -> None:
    """From the least on, whatever is stored, spilled or computed again."""
    family = FAMILIES[name]
    inputs = family.inputs(BUDGETS[name], 1, 1)
    wanted = family.reference(inputs)
    whole, roomy = _within(family, inputs, "64GB", tmp_path)
    assert_exact(whole, wanted)
    for share in (0.0, 0.3):
        more_bytes = int(share * (roomy.peak_device_bytes + roomy.peak_host_bytes))
        made, report, _ = just_enough(family, inputs, tmp_path, more_bytes)
        assert report.peak_device_bytes + report.peak_host_bytes <= (
            roomy.peak_device_bytes + roomy.peak_host_bytes
        )
        assert_exact(made, wanted)


def test_nothing_may_be_stored(tmp_path: Path) -> None:
    """Without room for what passes leave, a decoder computes again, or says what it needs."""
    family = models.KL_DECODE
    inputs = family.inputs(BUDGETS["KL_DECODE"], 1, 1)
    try:
        made, report, _ = just_enough(family, inputs, tmp_path, disk=1, host_memory=1)
    except RequestError as error:
        message = str(error)
    else:
        assert report.peak_disk_bytes <= 1
        assert_exact(made, family.reference(inputs))
        return
    assert AMOUNT.search(message)


@torch.no_grad()
def on_disk(family: Family, size: models.Size, **options: Any) -> models.Outputs:
    """One call whose values between passes all rest on the disk."""
    module = family.module()
    with hirescli.stream(module, rows=3, store="disk", **options):
        return family.call(module, family.inputs(size, 1, 1))


def test_disk_budget_too_small_for_the_store(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"2\.0 kB"):
        on_disk(models.SD15, (8, 8), spill=tmp_path, disk="2kB")
    assert not list(tmp_path.rglob("*"))


def test_spill_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(HiresError, match="file"):
        on_disk(models.SD15, (8, 8), spill=path)
    assert path.read_text() == "mine"


def test_spill_files_go_after_an_exception(tmp_path: Path) -> None:
    module = models.SD15.build()
    next(module.get_submodule("conv_out").parameters()).fill_(float("nan"))
    inputs = models.unet_inputs((8, 8), 1, 1)
    options = {"rows": 3, "store": "disk", "spill": tmp_path}
    with torch.no_grad(), pytest.raises(RunError), hirescli.stream(module, **options):
        module(**inputs)
    assert not list(tmp_path.rglob("*"))


def test_full_disk(small_disk: Path) -> None:
    before = trace_of(models.SD15.module())
    with pytest.raises(HiresError) as caught:
        on_disk(models.SD15, (48, 32), spill=small_disk)
    assert str(small_disk) in str(caught.value)
    assert not list(small_disk.rglob("*"))
    assert trace_of(models.SD15.module()) == before


def test_disk_without_a_named_folder() -> None:
    wanted = models.SD15.reference(models.unet_inputs((8, 8), 1, 1))
    assert_exact(on_disk(models.SD15, (8, 8)), wanted)
