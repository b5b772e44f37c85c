"""Listeners: events become a progress display, plain lines, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, ClassVar, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from hirescli import events
from hirescli.cli.render import console
from hirescli.cli.streams import Patient, write_line
from hirescli.events import Event, Listener, event_dict
from hirescli.planning.machine import peak_rss_bytes
from hirescli.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from hirescli.planning.plan import Plan


class Work:
    """How much of an image is done, in the planned operations of its stages.

    Args:
        plan: Of the image.
    """

    _PARTS: ClassVar = {
        "encoder": "encode", "denoiser": "denoise", "dilated denoiser": "denoise",
        "decoder": "decode", "tiled decoder": "decode",
    }  # fmt: skip

    def __init__(self, plan: Plan) -> None:
        self._totals: dict[tuple[int, str], float] = {}
        self._calls: dict[int, int] = {}
        for cost in plan.stage_costs:
            for each in cost.components:
                index, part = cost.stage.index, self._PARTS[each.name]
                self._totals[index, part] = self._totals.get((index, part), 0.0) + each.flops
                if part == "denoise":
                    self._calls[index] = self._calls.get(index, 0) + each.calls
        self._done = dict.fromkeys(self._totals, 0.0)
        self._before = 0.0  # by an earlier run
        self._stage = 0
        self._calls_done = 0

    @property
    def fraction(self) -> float:
        """Part of what this run has to do that is done, 0 to 1."""
        left = 1.0 - self._before
        return (self._part - self._before) / left if left > 0 else 1.0

    @property
    def share(self) -> float:
        """Part of all operations that this run has to do."""
        return 1.0 - self._before

    @property
    def _part(self) -> float:
        return sum(self._done.values()) / (sum(self._totals.values()) or 1.0)

    def take(self, event: Event) -> None:
        """Count what an event reports; events of other kinds change nothing."""
        if isinstance(event, events.StageStarted):
            self._stage, self._calls_done = event.index, 0
        elif isinstance(event, events.PassDone) and event.call in ("unet", "transformer"):
            done = self._calls_done + event.number / event.total
            self._set(self._stage, "denoise", done / self._calls[self._stage])
            self._calls_done += event.number == event.total
        elif isinstance(event, events.StepDone):
            self._set(event.stage_index, "denoise", event.step / event.steps)
        elif isinstance(event, events.RowsEncoded):
            self._set(event.stage_index, "encode", event.rows / event.rows_total)
        elif isinstance(event, events.RowsDecoded):
            self._set(event.stage_index, "decode", event.rows / event.rows_total)
        elif isinstance(event, events.StageDone):
            self._finish(event.index)
        elif isinstance(event, events.WentOn):
            for index in range(event.index):
                self._finish(index)
            self._before = self._part

    def _finish(self, index: int) -> None:
        for part in ("encode", "denoise", "decode"):
            self._set(index, part, 1.0)

    def _set(self, index: int, part: str, fraction: float) -> None:
        self._done[index, part] = self._totals.get((index, part), 0.0) * fraction


def seconds_left(elapsed_seconds: float, fraction: float, planned_seconds: float) -> float:
    """Time left: planned at first, measured as more is done.

    Both are weighed by what is done, so that the first fast step does not promise too much.
    """
    planned = max(planned_seconds - elapsed_seconds, 0.0)
    if fraction <= 0:
        return planned
    measured = elapsed_seconds / fraction * (1 - fraction)
    trust = min(fraction * 10, 1.0)  # the measured speed alone counts from a tenth on
    return trust * measured + (1 - trust) * planned


def warn(listener: Listener, plans: Iterable[Plan]) -> None:
    """Tell the warnings of plans, each once."""
    for message in dict.fromkeys(warning for plan in plans for warning in plan.warnings):
        listener(events.Warned(message))


def paused(listener: Listener) -> AbstractContextManager[None]:
    """A time in which paths can be printed: a listener that draws bars draws none."""
    pause: Callable[[], AbstractContextManager[None]] = getattr(listener, "paused", nullcontext)
    return pause()


@contextmanager
def listening(
    *, as_json: bool, quiet: bool, at_first: str = "loading the model"
) -> Iterator[Listener]:
    """The listener that fits: JSON lines, warnings only, a live display, or plain lines.

    A display says `at_first` until the first event.

    None of them ends a run because nobody reads it any more.
    """
    # Not rich's own answer to a closed pipe: it ends the process.
    stderr = console(cast("TextIO", Patient(sys.stderr)))
    if as_json:
        yield JsonLines()
    elif quiet:
        yield Lines(stderr, only_warnings=True)
    elif stderr.is_terminal and not stderr.is_dumb_terminal:
        with Display(stderr, at_first=at_first) as display:
            yield display
    else:
        yield Lines(stderr)


class JsonLines:
    """Every event as one JSON object on stdout; a reader who left does not end the run."""

    def __call__(self, event: Event) -> None:
        """Print one event."""
        write_line(json.dumps(event_dict(event)))


class Lines:
    """Plain lines, for logs and terminals that cannot redraw.

    Args:
        out: Where to print.
        only_warnings: Whether to leave out all else.
    """

    def __init__(self, out: Console, *, only_warnings: bool = False) -> None:
        self._out = out
        self._only_warnings = only_warnings
        self._label = ""
        self._warned: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Print the line of one event, if it has one."""
        if isinstance(event, events.Warned):
            if event.message not in self._warned:
                self._warned.add(event.message)
                self._print(f"warning: {event.message}")
        elif not self._only_warnings:
            line = self._line(event)
            if line is not None:
                self._print(line)

    def _line(self, event: Event) -> str | None:
        if isinstance(event, events.StageStarted):
            self._label = stage_label(event)
            return f"{self._label}, {event.steps} steps"
        if isinstance(event, events.StageDone):
            return f"{self._label}: {format_seconds(event.seconds)}"
        if isinstance(event, events.WentOn):
            return went_on_line(event)
        if isinstance(event, events.PreviewWritten):
            return f"preview {event.path}"
        return closing_line(event)

    def _print(self, line: str) -> None:
        self._out.print(line, soft_wrap=True)


def stage_label(event: events.StageStarted) -> str:
    """A stage in a few words, such as "stage 2/3 upscale 1024x512"."""
    size = f"{event.width_px}x{event.height_px}"
    return f"stage {event.index + 1}/{event.count} {event.kind} {size}"


def went_on_line(event: events.WentOn) -> str:
    """What an earlier run has left to do."""
    if event.index == event.count:
        return "going on with an earlier run: all stages are finished"
    return f"going on with an earlier run at stage {event.index + 1}/{event.count}"


def closing_line(event: Event) -> str | None:
    """The line of an event after the last stage, None for others."""
    if isinstance(event, events.Finalising):
        return f"making the {event.format} file"
    if isinstance(event, events.FileWritten):
        return f"wrote {event.path} ({format_bytes(event.bytes)})"
    if isinstance(event, events.RunDone):
        peak = format_bytes(event.peak_rss_bytes)
        return f"done in {format_seconds(event.seconds)}, peak memory {peak}"
    return None


class Display:
    """A live display: a bar for the image and one for the work under way, above it what is done.

    Args:
        out: A terminal.
        at_first: What is done before the first event.
    """

    def __init__(
        self,
        out: Console,
        *,
        at_first: str = "loading the model",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lines = Lines(out)
        self._clock = clock
        self._started = clock()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            console=out,
            transient=True,
            redirect_stdout=False,  # paths go to stdout, whoever reads it
        )
        self._work: Work | None = None
        self._planned_seconds = 0.0
        self._image = self._progress.add_task("image", total=1.0, note=at_first)
        self._part = self._progress.add_task("", total=1.0, note="", visible=False)
        self._final: TaskID | None = None
        self._stage = ""
        self._images = 0

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, events.RunStarted):
            self._begin(event.plan)
        elif isinstance(event, events.StageStarted):
            self._stage = stage_label(event)
            self._show_part("starts", 0, 1)
        elif isinstance(event, events.StepDone):
            self._show_part("step", event.step, event.steps)
        elif isinstance(event, events.RowsEncoded):
            self._show_part("encoded rows", event.rows, event.rows_total)
        elif isinstance(event, events.RowsDecoded):
            self._show_part("decoded rows", event.rows, event.rows_total)
        elif isinstance(event, events.StageDone):
            self._progress.console.print(f"{self._stage}: {format_seconds(event.seconds)}")
        else:
            self._closing(event)
        self._count(event)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bars away while something else is written to the same terminal."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def refresh(self) -> None:
        """Draw now; otherwise it is drawn ten times a second."""
        self._progress.refresh()

    def _begin(self, plan: object) -> None:
        # A run knows its validated plan, a planner's caller the plan itself.
        inner = cast("Plan", getattr(plan, "plan", plan))
        self._work, self._planned_seconds = Work(inner), inner.seconds
        self._started = self._clock()
        self._images += 1
        label = "image" if self._images == 1 else f"image {self._images}"
        self._progress.update(self._image, description=label, completed=0.0, note="")

    def _show_part(self, what: str, done: int, total: int) -> None:
        note = f"{what} {done}/{total}" if total > 1 else what
        self._progress.update(
            self._part, description=self._stage, completed=done, total=total, note=note,
            visible=True,
        )  # fmt: skip

    def _closing(self, event: Event) -> None:
        if isinstance(event, events.Finalising):
            self._progress.update(self._part, visible=False)
            self._final = self._progress.add_task(closing_line(event) or "", total=None, note="")
        else:
            self._lines(event)
        if isinstance(event, events.FileWritten) and self._final is not None:
            self._progress.remove_task(self._final)
            self._final = None

    def _count(self, event: Event) -> None:
        if self._work is None:
            return
        self._work.take(event)
        fraction = self._work.fraction
        planned = self._planned_seconds * self._work.share
        left = seconds_left(self._clock() - self._started, fraction, planned)
        time_left = f"{format_seconds(left)} left, " if fraction < 1 else ""
        note = f"{time_left}peak memory {format_bytes(peak_rss_bytes())}"
        self._progress.update(self._image, completed=fraction, note=note)
