"""Memory that runs out in a pass: lower bands, the same result, and an end at one row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_exact
from models import KL_DECODE, SD15, Family, picture, randomised
from torch import Tensor, nn

import hirescli
from hirescli.errors import RunError
from hirescli.events import BandHalved, Event, PassDone

Raiser = Callable[[], BaseException]
ERRORS: dict[str, Raiser] = {
    "device": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "host": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
}


class SmallMemory:
    """Stands before `F.conv2d`, as an allocator does that cannot give more than some rows.

    Attributes:
        most_rows: That a convolution with a halo may read.
        error: What is raised for more.
        spared: Calls that go well before the first that does not.
        times: How often it is raised.
    """

    def __init__(
        self, most_rows: int, error: Raiser, spared: int = 0, times: int = 1 << 30
    ) -> None:
        self.most_rows, self.error, self.spared, self.times = most_rows, error, spared, times
        self.conv2d = F.conv2d

    def __call__(self, rows: Tensor, weight: Tensor, *args: object) -> Tensor:
        if type(rows) is Tensor and rows.device.type == "cpu" and weight.shape[2] > 1:
            self.spared -= 1
            if self.spared < 0 < self.times and rows.shape[2] > self.most_rows:
                self.times -= 1
                raise self.error()
        return self.conv2d(rows, weight, *args)  # type: ignore[arg-type]


class Net(nn.Module):
    """Convolutions around a norm: two passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.second(F.silu(self.norm(self.first(x))))
        return made


@pytest.fixture
def net() -> Net:
    return randomised(Net(), 1)


@torch.no_grad()
def halved(
    net: nn.Module, x: Tensor, memory: SmallMemory, rows: int
) -> tuple[Tensor, list[Event]]:
    """What the net gives in bands while memory is small, and what was told."""
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", memory)
        with hirescli.stream(net, rows=rows, listener=events.append):
            return net(x), events


@pytest.mark.parametrize("name", ERRORS)
def test_bands_are_halved_until_they_fit(net: Net, name: str) -> None:
    x = picture(1, 4, (24, 7), 0)
    # Five rows with their halos fit: bands of 16 become 8, 4, 2.
    made, events = halved(net, x, SmallMemory(5, ERRORS[name]), rows=16)
    told = [event for event in events if isinstance(event, BandHalved)]
    assert [(event.number, event.rows) for event in told] == [
        *((number, rows) for number in (1, 2) for rows in (8, 4, 2))
    ]
    assert [event.number for event in events if isinstance(event, PassDone)] == [1, 2]
    with torch.no_grad():
        assert_exact([made], [net.double()(x.double())])


@pytest.mark.parametrize("spared", range(8))
def test_memory_that_runs_out_once_somewhere(net: Net, spared: int) -> None:
    """Bands before stay, reductions count no row twice."""
    x = picture(1, 4, (24, 7), 0)
    made, events = halved(net, x, SmallMemory(0, ERRORS["host"], spared, times=1), rows=6)
    (told,) = (event for event in events if isinstance(event, BandHalved))
    assert told.rows == 3
    with torch.no_grad():
        assert_exact([made], [net.double()(x.double())])


def test_one_row_that_does_not_fit_says_so(net: Net) -> None:
    before = sorted(vars(net))
    with pytest.raises(RunError, match=r"out of memory in one row of pass 1 of 2.*--size"):
        halved(net, picture(1, 4, (9, 7), 0), SmallMemory(0, ERRORS["device"]), rows=4)
    assert sorted(vars(net)) == before


def test_other_errors_are_not_taken_for_it(net: Net) -> None:
    memory = SmallMemory(0, lambda: RuntimeError("expected a tensor of another shape"))
    with pytest.raises(RuntimeError, match="another shape"):
        halved(net, picture(1, 4, (9, 7), 0), memory, rows=4)


@pytest.mark.parametrize("store", ["host", "disk"])
@pytest.mark.parametrize("family", [SD15, KL_DECODE], ids=["SD15", "KL_DECODE"])
def test_whole_components_go_on(family: Family, store: str, tmp_path: Path) -> None:
    inputs = family.inputs((12, 9), 2, 1)
    module, events = family.module(), list[Event]()
    memory = SmallMemory(7, ERRORS["host"])
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "conv2d", memory)
        options = {"rows": 12, "store": store, "spill": tmp_path}
        with hirescli.stream(module, listener=events.append, **options):  # type: ignore[arg-type]
            made = family.call(module, inputs)
    assert any(isinstance(event, BandHalved) for event in events)
    assert_exact(made, family.reference(inputs))
    assert list(tmp_path.iterdir()) == []
