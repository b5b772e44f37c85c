"""The banded call against the plain one: seconds, memory and error, in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from hirescli.bands.engine import Report
from hirescli.bands.stream import stream
from hirescli.evaluation.agreement import max_error
from hirescli.evaluation.case import WARM_LATENTS, Case, in_child, timed
from hirescli.evaluation.components import Component, Latents, component, threads_set
from hirescli.evaluation.peak import can_reset, give_back
from hirescli.evaluation.request import PX_PER_LATENT

# Calls that end so soon are made several times in each turn: the first one has to ask the system
# for memory that measuring peaks has given back, and one alone says little.
_SHORT_SECONDS = 2.0
_SHORT_CALLS = 5


@dataclass(frozen=True)
class Comparison:
    """One component at one band height.

    Attributes:
        component: Its name.
        width_px, height_px: Of the picture.
        rows: Band height in latent rows.
        passes: Sweeps of one call.
        plain_seconds, banded_seconds: Of every call, in order.
        error: Largest difference of the two, in standard deviations of the plain result.
        exact_px: Longer side of the pictures that the next two are of.
        plain_from_exact, banded_from_exact: Errors of both from the plain call in float64.
        planned_peak_bytes: Of bands and stores, as scheduled.
        plain_peak_bytes, banded_peak_bytes: Resident memory above that before the call.
        work: Arithmetic of the banded call over that of the plain one.
    """

    component: str
    width_px: int
    height_px: int
    rows: int
    passes: int
    plain_seconds: tuple[float, ...]
    banded_seconds: tuple[float, ...]
    error: float
    exact_px: int
    plain_from_exact: float
    banded_from_exact: float
    planned_peak_bytes: int
    plain_peak_bytes: int
    banded_peak_bytes: int
    work: float

    @property
    def best_ratio(self) -> float:
        """Seconds of the best banded call over those of the best plain one."""
        return min(self.banded_seconds) / min(self.plain_seconds)

    @property
    def median_ratio(self) -> float:
        """The same of the medians."""
        return statistics.median(self.banded_seconds) / statistics.median(self.plain_seconds)


@dataclass
class _Way:
    """One way to call the component, and what was measured of it."""

    case: Case
    part: Component
    report: Report | None
    seconds: list[float] = field(default_factory=list)
    peaks_bytes: list[int] = field(default_factory=list)
    error: float = 0.0
    from_exact: float = 0.0
    # The report counts all calls; what a single one takes is the difference of two.
    passes: int = 0
    flops: float = 0.0
    plain_flops: float = 0.0

    def call(self, latents: Latents) -> Tensor:
        """Call and measure."""
        before = None if self.report is None else replace(self.report)
        seconds, peak_bytes, made = timed(self.part, latents)
        self.seconds.append(seconds)
        self.peaks_bytes.append(peak_bytes)
        if self.report is not None and before is not None:
            self.passes = self.report.passes - before.passes
            self.flops = self.report.flops - before.flops
            self.plain_flops = self.report.plain_flops - before.plain_flops
        for _ in range(_SHORT_CALLS - 1 if seconds < _SHORT_SECONDS else 0):
            start = time.perf_counter()
            self.part.run(latents)
            self.seconds.append(time.perf_counter() - start)
        return made

    def peak_bytes(self) -> int:
        """The largest of all calls, or of one in a process of its own where need be."""
        if can_reset():
            return max(self.peaks_bytes)
        with tempfile.TemporaryDirectory() as folder:
            return in_child(self.case, Path(folder) / "made.safetensors")[0].peak_bytes


def compare(case: Case, rows: Sequence[int | None], *, repeat: int) -> list[Comparison]:
    """Measure one component plainly and at some band heights, in turns.

    Args:
        case: The plain call.
        rows: Band heights in latent rows; None: as the engine chooses.
        repeat: Calls of each way, at least 1.

    Raises:
        RequestError: If the budget is too small.
        RunError: If a call fails.
    """
    with threads_set(case.threads), ExitStack() as stack:
        part = component(case.component, dtype=case.dtype)
        height, width = (min(part.exact_latents, side) for side in case.latents)
        exact = height, width
        wanted = part.in_double().run(exact)
        ways = [_Way(case, part, None)]
        for each in rows:
            banded = replace(case, way="banded", rows=each)
            give_back()  # the budget is the process's: it must not pay for what is over
            ways.append(_streamed(banded, part.shared(), stack))
        for way in ways:
            way.part.run(WARM_LATENTS)
            way.from_exact = max_error(way.part.run(exact), wanted)
        _take_turns(ways, case.latents, repeat)
        return [_comparison(ways[0], way, exact) for way in ways[1:]]


def _streamed(case: Case, part: Component, stack: ExitStack) -> _Way:
    report = stack.enter_context(stream(part.module, memory=case.memory_bytes, rows=case.rows))
    return _Way(case, part, report)


def _take_turns(ways: Sequence[_Way], latents: Latents, repeat: int) -> None:
    """Call all ways, forth and back: a machine that slows down slows all."""
    whole: Tensor | None = None
    for turn in range(repeat):
        for way in ways if turn % 2 == 0 else reversed(ways):
            made = way.call(latents)
            whole = made if whole is None else whole  # the plain way's, the first of all
            way.error = max(way.error, max_error(made, whole))
            del made  # the next call's baseline is without it


def _comparison(plain: _Way, way: _Way, exact: Latents) -> Comparison:
    height, width = way.case.latents
    assert way.report is not None
    return Comparison(
        component=way.part.name,
        width_px=width * PX_PER_LATENT,
        height_px=height * PX_PER_LATENT,
        rows=way.report.rows,
        passes=way.passes,
        plain_seconds=tuple(plain.seconds),
        banded_seconds=tuple(way.seconds),
        error=way.error,
        exact_px=max(exact) * PX_PER_LATENT,
        plain_from_exact=plain.from_exact,
        banded_from_exact=way.from_exact,
        planned_peak_bytes=way.report.peak_host_bytes,
        plain_peak_bytes=plain.peak_bytes(),
        banded_peak_bytes=way.peak_bytes(),
        work=way.flops / way.plain_flops,
    )
