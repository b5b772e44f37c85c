"""One contract for every store: rows come back bit for bit, and no byte is left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hirescli.bands.stores import Kept, Ledger, new_value
from hirescli.bands.tensor import Grid, Node
from hirescli.errors import RunError

STORES = ("host", "disk")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a value of `rows` by `width` pixels lies in memory.

    Attributes:
        shape: Of the whole, with 0 for the rows' dimension.
        dim: The rows' dimension.
        per_row: Its elements for each row.
        order: Dimensions from the outermost in memory to the innermost.
    """

    shape: Shape
    dim: int
    per_row: int
    order: Shape

    def band(self, rows: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        shape = self.whole(rows)
        dense = [shape[d] for d in self.order]
        made = torch.randn(dense, generator=torch.Generator().manual_seed(seed)).to(dtype)
        return made.permute([self.order.index(d) for d in range(len(shape))])

    def whole(self, rows: int) -> list[int]:
        return [rows * self.per_row if d == self.dim else n for d, n in enumerate(self.shape)]

    def node(self, rows: int, dtype: torch.dtype = torch.float32) -> Node:
        return Node(
            kind="local", name="value", parents=(), shape=torch.Size(self.whole(rows)),
            dtype=dtype, device=torch.device("cpu"),
            grid=Grid(rows, self.per_row, Fraction(1), self.dim),
        )  # fmt: skip


LAYOUTS = {
    "contiguous": Layout((1, 3, 0, 5), 2, 1, (0, 1, 2, 3)),
    "channels-last": Layout((1, 3, 0, 5), 2, 1, (0, 2, 3, 1)),
    "one channel": Layout((1, 1, 0, 5), 2, 1, (0, 1, 2, 3)),
    "tokens": Layout((1, 0, 6), 1, 5, (0, 1, 2)),
    "channels before tokens": Layout((1, 6, 0), 2, 5, (0, 2, 1)),
    "heads": Layout((1, 2, 0, 3), 2, 5, (0, 2, 1, 3)),
    "heads outermost": Layout((1, 2, 0, 3), 2, 5, (0, 1, 2, 3)),
}
layouts = st.sampled_from(sorted(LAYOUTS)).map(LAYOUTS.__getitem__)


@st.composite
def pieces(draw: st.DrawFn) -> list[int]:
    """Heights of bands from top to bottom."""
    return draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))


def bounds(heights: list[int]) -> Iterator[tuple[int, int]]:
    lo = 0
    for height in heights:
        yield lo, lo + height
        lo += height


def filled(
    store: str, layout: Layout, heights: list[int], folder: Path, ledger: Ledger
) -> tuple[Kept, Tensor]:
    """A value that has taken all its bands, and what it should hold."""
    kept = new_value(layout.node(sum(heights)), store, folder, ledger)
    bands = [layout.band(height, seed) for seed, height in enumerate(heights)]
    for (lo, hi), band in zip(bounds(heights), bands, strict=True):
        kept.put(lo, hi, band)
    return kept, torch.cat(bands, layout.dim)


def rows_of(whole: Tensor, layout: Layout, lo: int, hi: int) -> Tensor:
    return whole.narrow(layout.dim, lo * layout.per_row, (hi - lo) * layout.per_row)


def strides(band: Tensor) -> list[int]:
    """Those that matter: of dimensions with more than one element."""
    return [s for s, n in zip(band.stride(), band.shape, strict=True) if n > 1]


@settings(max_examples=80)
@given(layouts, pieces(), st.data())
def test_any_rows_come_back_from_every_store(
    layout: Layout, heights: list[int], data: st.DataObject
) -> None:
    rows = sum(heights)
    spans = []
    for _ in range(3):
        lo = data.draw(st.integers(0, rows - 1))
        spans.append((lo, data.draw(st.integers(lo + 1, rows))))
    with tempfile.TemporaryDirectory() as name:
        ledger, folder = Ledger(), Path(name)
        values = [filled(store, layout, heights, folder, ledger) for store in STORES]
        for lo, hi in spans:
            bands = []
            for kept, whole in values:
                band = kept.rows(lo, hi)
                assert torch.equal(band, rows_of(whole, layout, lo, hi))
                bands.append(band)
            assert strides(bands[0]) == strides(bands[1])
        for kept, _ in values:
            kept.close()
    assert set(ledger.now.values()) == {0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("store", STORES)
def test_every_dtype_is_kept_and_counted(store: str, dtype: torch.dtype, tmp_path: Path) -> None:
    ledger, layout = Ledger(), LAYOUTS["channels-last"]
    kept = new_value(layout.node(4, dtype), store, tmp_path, ledger)
    band = layout.band(4, 0, dtype)
    kept.put(0, 4, band)
    assert kept.rows(0, 4).dtype == dtype
    assert torch.equal(kept.rows(0, 4), band)
    assert ledger.now == {store: 3 * 4 * 5 * dtype.itemsize}
    kept.close()
    assert ledger.now == {store: 0}
    assert ledger.peak == {store: 3 * 4 * 5 * dtype.itemsize}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("store", STORES)
def test_rows_that_are_given_again_replace_those_before(
    store: str, name: str, tmp_path: Path
) -> None:
    """As after a band that ran out of memory once it had been put."""
    ledger, layout = Ledger(), LAYOUTS[name]
    kept = new_value(layout.node(8), store, tmp_path, ledger)
    first, wrong, second, third = (layout.band(n, seed) for seed, n in enumerate((4, 4, 2, 2)))
    kept.put(0, 4, first)
    kept.put(4, 8, wrong)
    kept.put(4, 6, second)
    kept.put(6, 8, third)
    whole = torch.cat([first, second, third], layout.dim)
    assert torch.equal(kept.rows(0, 8), whole)
    assert torch.equal(kept.rows(3, 7), rows_of(whole, layout, 3, 7))
    assert ledger.now[store] == whole.numel() * 4
    kept.close()
    assert ledger.now[store] == 0


@settings(max_examples=40)
@given(layouts, pieces(), st.data())
def test_what_is_left_stays_after_freeing(
    layout: Layout, heights: list[int], data: st.DataObject
) -> None:
    rows = sum(heights)
    below = data.draw(st.integers(0, rows))
    with tempfile.TemporaryDirectory() as name:
        for store in STORES:
            ledger = Ledger()
            kept, whole = filled(store, layout, heights, Path(name), ledger)
            kept.free(below)
            if below < rows:
                assert torch.equal(kept.rows(below, rows), rows_of(whole, layout, below, rows))
            assert 0 <= ledger.now[store] <= whole.numel() * 4
            kept.close()
            assert ledger.now[store] == 0


def test_memory_is_given_back_band_by_band(tmp_path: Path) -> None:
    ledger, layout = Ledger(), LAYOUTS["contiguous"]
    kept, _ = filled("host", layout, [4, 4, 4], tmp_path, ledger)
    left = []
    for below in (3, 4, 8, 11, 12):
        kept.free(below)
        left.append(ledger.now["host"] // (3 * 5 * 4))
    assert left == [12, 8, 4, 4, 0]


@pytest.mark.parametrize("store", STORES)
def test_a_view_is_kept_without_the_larger_whole(store: str, tmp_path: Path) -> None:
    """A view of something larger would keep all of that in memory."""
    layout = LAYOUTS["contiguous"]
    large = layout.band(100, 0)
    kept = new_value(layout.node(2), store, tmp_path, Ledger())
    wanted = large[:, :, 50:52].clone()
    kept.put(0, 2, large[:, :, 50:52])
    large.zero_()
    assert torch.equal(kept.rows(0, 2), wanted)
    kept.close()


def test_a_spilled_value_has_no_name(tmp_path: Path) -> None:
    kept, _ = filled("disk", LAYOUTS["tokens"], [3, 2], tmp_path, Ledger())
    assert list(tmp_path.iterdir()) == []
    kept.close()
    kept.close()


def test_full_disk_names_folder_and_size(small_disk: Path) -> None:
    ledger, layout = Ledger(), Layout((1, 4, 0, 64), 2, 1, (0, 1, 2, 3))
    with pytest.raises(RunError, match=r"no room .*307\.2 kB") as caught:
        new_value(layout.node(300), "disk", small_disk, ledger)
    assert str(small_disk) in str(caught.value)
    assert "--spill" in str(caught.value)
    assert ledger.now.get("disk", 0) == 0
    assert list(small_disk.iterdir()) == []
    kept = new_value(layout.node(100), "disk", small_disk, ledger)  # there is room for less
    with pytest.raises(RunError):
        new_value(layout.node(200), "disk", small_disk, ledger)
    kept.close()
    new_value(layout.node(200), "disk", small_disk, ledger).close()
    assert ledger.now == {"disk": 0}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="none"):
        new_value(LAYOUTS["tokens"].node(3), "disk", tmp_path / "none", Ledger())
