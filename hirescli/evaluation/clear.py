"""Full attention against CLEAR's, of one layer of FLUX's shape, in one run and one process.

What is measured is the attention alone: queries, keys and values are drawn. The projections of
such a layer stand beside it, since they take time too, and more than CLEAR on large grids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.attention.clear import clear_attention
from hirescli.attention.clear_geometry import Geometry
from hirescli.errors import RequestError
from hirescli.evaluation.components import threads_set
from hirescli.evaluation.peak import peak_memory
from hirescli.evaluation.tables import table
from hirescli.units import format_bytes

HEADS, CHANNELS = 24, 128  # of FLUX
TEXT_TOKENS = 512
PX_PER_TOKEN = 16
WINDOWS = (8, 16, 32)
FULL, PROJECTIONS = "full", "projections"
WAYS = (FULL, *(f"window {window}" for window in WINDOWS), PROJECTIONS)
GRIDS = {"cpu": (64, 128), "cuda": (64, 128, 256, 512)}
LEAST_GRID = max(WINDOWS)
_SHORT_SECONDS = 20.0  # calls below are made twice, and the faster counts


@dataclass(frozen=True)
class ClearRow:
    """One way on one grid.

    Attributes:
        way: One of `WAYS`.
        grid: Side of the square of image tokens; `TEXT_TOKENS` text tokens go with it.
        flops: Operations that the way asks for; those of full attention, and of the pairs that
            CLEAR sees, without what tiles compute beyond.
        seconds: Of one call, batch of one; None if it did not end well.
        cpu_seconds: What processors spent on it, all threads together; None on a GPU.
        peak_bytes: On CUDA of the device; on a CPU of the process, above what was resident
            before the call.
        note: Why there is no figure; "" if there is.
    """

    way: str
    grid: int
    flops: float
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    note: str = ""

    @property
    def work(self) -> float | None:
        """What ways are compared by: processor time, which other programs change little; on a
        GPU, time.
        """
        return self.seconds if self.cpu_seconds is None else self.cpu_seconds

    @property
    def size_px(self) -> int:
        """Side of the picture."""
        return self.grid * PX_PER_TOKEN


def measure_clear(
    grids: Sequence[int],
    *,
    device: str,
    dtype: torch.dtype,
    threads: int,
    most_seconds: float = 600.0,
) -> list[ClearRow]:
    """Measure every way on each grid, in turns.

    Args:
        grids: Sides in tokens, at least `LEAST_GRID`, growing.
        device: "cuda" or "cpu".
        dtype: To compute in.
        threads: Of a CPU.
        most_seconds: A call that would take longer, as its growth so far says, is left out.

    Raises:
        RequestError: If there is no such device, or a grid is too small.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("there is no CUDA device here; `hires doctor` says what there is")
    for grid in grids:
        if grid < LEAST_GRID:
            raise RequestError(
                f"grid {grid} is smaller than window {LEAST_GRID}, which is measured too; give "
                f"sides of at least {LEAST_GRID} tokens, {PX_PER_TOKEN} px each"
            )
    rows: list[ClearRow] = []
    with torch.no_grad(), threads_set(threads):
        for way in WAYS:
            _call(way, LEAST_GRID, device, dtype)()  # libraries and kernels make ready
        for grid in grids:
            for way in WAYS:
                row = ClearRow(way, grid, flops(way, grid))
                expected = _expected(row, rows)
                if expected > most_seconds:
                    rows.append(replace(row, note=f"not tried: about {expected:.0f} s"))
                else:
                    rows.append(_measured(row, device, dtype))
    return rows


def flops(way: str, grid: int) -> float:
    """Operations of a way, a multiplication and an addition for each product."""
    tokens = grid**2 + TEXT_TOKENS
    if way == FULL:
        return 4.0 * HEADS * CHANNELS * tokens**2
    if way == PROJECTIONS:  # queries, keys, values, outputs
        return 4 * 2.0 * tokens * (HEADS * CHANNELS) ** 2
    return _geometry(way, grid).flops(HEADS, CHANNELS)


def _geometry(way: str, grid: int) -> Geometry:
    return Geometry(grid, grid, int(way.removeprefix("window ")), 1, TEXT_TOKENS)


def _expected(row: ClearRow, before: Sequence[ClearRow]) -> float:
    """Seconds, from those of the largest grid before."""
    last = [each for each in before if each.way == row.way]
    if not last:
        return 0.0
    return (last[-1].seconds or float("inf")) * row.flops / last[-1].flops


def _measured(row: ClearRow, device: str, dtype: torch.dtype) -> ClearRow:
    try:
        call = _call(row.way, row.grid, device, dtype)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with nullcontext() if device == "cuda" else peak_memory() as peak:
            seconds, cpu_seconds = _seconds(call, device)
        peak_bytes = torch.cuda.max_memory_allocated() if peak is None else peak.above_bytes
        if seconds < _SHORT_SECONDS:
            again, cpu_again = _seconds(call, device)
            seconds, cpu_seconds = min(seconds, again), min(cpu_seconds, cpu_again)
    except torch.OutOfMemoryError:
        return replace(row, note="out of memory")
    spent = None if device == "cuda" else cpu_seconds
    return replace(row, seconds=seconds, cpu_seconds=spent, peak_bytes=peak_bytes)


def _seconds(call: Callable[[], object], device: str) -> tuple[float, float]:
    """By the clock, and what this process spent."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, spent = time.perf_counter(), time.process_time()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - spent


def _call(way: str, grid: int, device: str, dtype: torch.dtype) -> Callable[[], object]:
    """What is timed, with its inputs made."""
    tokens = grid**2 + TEXT_TOKENS
    if way == PROJECTIONS:
        width = HEADS * CHANNELS
        states, weight = _drawn(device, dtype, tokens, width), _drawn(device, dtype, width, width)
        return lambda: [F.linear(states, weight) for _ in range(4)]
    # Tokens outside heads, as FLUX has them.
    q, k, v = (_drawn(device, dtype, 1, tokens, HEADS, CHANNELS).transpose(1, 2) for _ in "qkv")
    if way == FULL:
        return lambda: F.scaled_dot_product_attention(q, k, v)
    return lambda: clear_attention(q, k, v, _geometry(way, grid))


def _drawn(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype)


# The page


def clear_table(rows: Sequence[ClearRow]) -> list[str]:
    """The paragraphs of `hires bench clear`."""
    heads = [
        "picture", "tokens", "way", "time", "processor time", "against full", "per token",
        "operations", "peak memory",
    ]  # fmt: skip
    told = f"""\
One call of one layer: {HEADS} heads of {CHANNELS} channels, batch of one, {TEXT_TOKENS} text
tokens beside the image's; inputs are drawn at random. Full is PyTorch's
`scaled_dot_product_attention`; a window is CLEAR's attention, without pooled keys; projections
are the four linear layers around either. Processor time is that of all threads together: on a
busy machine it is the steadier one, and on a CPU "against full" (how many times less) and "per
token" (growth since the smallest grid) are of it. Operations are those asked for. Peak memory is
what a call takes beside its inputs on a CPU, and all on a GPU. Calls of less than
{_SHORT_SECONDS:.0f} s were made twice, and the faster counts."""
    return [table(heads, [_cells(row, rows) for row in rows]), told]


def _cells(row: ClearRow, rows: Sequence[ClearRow]) -> list[str]:
    size = [f"{row.size_px}x{row.size_px}", f"{row.grid}x{row.grid}", row.way]
    operations = f"{row.flops / 1e12:.3g} T"
    if row.seconds is None or row.peak_bytes is None or row.work is None:
        return [*size, row.note, "-", "-", "-", operations, "-"]
    full = next((r.work for r in rows if (r.way, r.grid) == (FULL, row.grid)), None)
    first = next(each for each in rows if each.way == row.way)
    quicker = grown = "-"
    if full and row.way not in (FULL, PROJECTIONS):
        quicker = f"{full / row.work:.2f}x"
    if first.work and first is not row:
        grown = f"{row.work / first.work * (first.grid / row.grid) ** 2:.2f}x"
    spent = "-" if row.cpu_seconds is None else f"{row.cpu_seconds:.3g} s"
    took = f"{row.seconds:.3g} s"
    return [*size, took, spent, quicker, grown, operations, format_bytes(row.peak_bytes)]
