"""Charts as PNG files, all in one style: a light ground, few lines, colours that all people can
tell apart. Matplotlib is imported when one is drawn, without a display.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import RequestError
from hirescli.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hirescli.evaluation.bands import Comparison
    from hirescli.evaluation.batching import BatchRun
    from hirescli.evaluation.benchmark import ImageRun
    from hirescli.evaluation.clear import ClearRow
    from hirescli.evaluation.decoding import Decode
    from hirescli.evaluation.gpu import Row
    from hirescli.evaluation.outputs import OutputRun

# Okabe and Ito's colours, without the yellow that is lost on white.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
INK, GREY = "#222222", "#8A8A8A"
_MADE_BY = "hires chart"
_HEAD_BYTES = 4096
_DPI = 110
_LEAST_SHOWN = 0.02  # a share with room for its number
_GB = 1e9
_STYLE: Any = {
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.constrained_layout.h_pad": 0.08,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a file's name is a dollar
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 6,
}
_WAYS = {
    "plain": ("whole image", GREY),
    "banded": ("in bands", BLUE),
    "tiled": ("tiled", ORANGE),
    "made": ("measured", BLUE),
}


@contextmanager
def drawn(path: Path, *, width: float, height: float, title: str) -> Iterator[Figure]:
    """A figure to draw on; it stands under its name once the context has ended.

    Args:
        path: A .png file that `check_target` lets pass.
        width: In inches of 110 px.
        height: Likewise.
        title: Above all.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        yield figure
        partial = path.with_name(path.name + ".partial")
        try:
            figure.savefig(partial, format="png", dpi=_DPI, metadata={"Software": _MADE_BY})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Refuse a place that no chart can go to, before hours are spent on what it shows.

    Raises:
        RequestError: If the name does not end in .png, the folder is missing or cannot be
            written, or there is a file that is no chart of ours.
    """
    if path.suffix.lower() != ".png":
        raise RequestError(f"chart {path} is written as PNG; give a name that ends in .png")
    if not path.parent.is_dir():
        raise RequestError(f"folder {path.parent} of {path.name} does not exist; make it first")
    if not os.access(path.parent, os.W_OK):
        raise RequestError(f"folder {path.parent} cannot be written; name a chart elsewhere")
    if path.is_dir() or (path.exists() and not _is_ours(path)):
        raise RequestError(f"{path} is there and no chart that hires has drawn; name another file")


def pictures_chart(path: Path, runs: Sequence[ImageRun]) -> None:
    """Time and peak memory of whole runs by size, measured and planned."""
    sizes = [f"{run.width_px}x{run.height_px}" for run in runs]
    with drawn(path, width=10, height=4.2, title="Pictures of the built-in model") as figure:
        time, memory = figure.subplots(1, 2)
        planned_seconds = [run.planned_seconds for run in runs]
        _pairs(time, sizes, [run.seconds for run in runs], planned_seconds, _seconds)
        _named(time, "Time of the whole command", "seconds")
        planned = [run.planned_peak_bytes / _GB for run in runs]
        _pairs(memory, sizes, [run.peak_rss_bytes / _GB for run in runs], planned, _gigabytes)
        _named(memory, "Peak memory", "GB")
        _legend(memory)


def batch_chart(path: Path, runs: Sequence[BatchRun]) -> None:
    """Where the time of batches goes, as shares of the whole."""
    names = [f"{run.jobs} of {run.width_px}x{run.height_px}, {run.seconds:.0f} s" for run in runs]
    parts = {
        "stages": (BLUE, [run.stages_seconds / run.seconds for run in runs]),
        "writing": (GREEN, [run.writing_seconds / run.seconds for run in runs]),
        "start and between": (ORANGE, [run.outside_share for run in runs]),
    }
    height = 1.6 + 0.5 * len(runs)
    with drawn(path, width=10, height=height, title="Batches of the built-in model") as figure:
        axes, left = figure.subplots(), [0.0] * len(runs)
        for label, (colour, shares) in parts.items():
            bars = axes.barh(names, shares, left=left, height=0.6, color=colour, label=label)
            said = [f"{share:.0%}" if share > _LEAST_SHOWN else "" for share in shares]
            axes.bar_label(bars, labels=said, label_type="center", color="white", fontsize=9)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(visible=False)
        _named(axes, "Shares of the time")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        _legend(axes)


def bands_chart(path: Path, figures: Sequence[Comparison]) -> None:
    """Banded calls beside plain ones: best time and peak memory."""
    names = [f"{f.component}, {f.width_px}x{f.height_px}\n{f.rows} rows" for f in figures]
    seconds = {
        "plain": [min(f.plain_seconds) for f in figures],
        "banded": [min(f.banded_seconds) for f in figures],
    }
    peaks = {
        "plain": [f.plain_peak_bytes / _GB for f in figures],
        "banded": [f.banded_peak_bytes / _GB for f in figures],
    }
    _two_panels(path, "Bands against plain calls", names, seconds, peaks)


def decodes_chart(path: Path, figures: Sequence[Decode]) -> None:
    """Three ways to decode: time and peak memory by size."""
    sizes = list(dict.fromkeys(f"{f.width_px}x{f.height_px}" for f in figures))
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    for each in figures:
        seconds.setdefault(each.way, []).append(each.outcome.seconds)
        peaks.setdefault(each.way, []).append(each.outcome.peak_bytes / _GB)
    _two_panels(path, "Ways to decode", sizes, seconds, peaks)


def gpu_chart(path: Path, rows: Sequence[Row]) -> None:
    """Time and memory of both parts by size, a line for each way; both axes are logarithmic."""
    parts = list(dict.fromkeys(row.part for row in rows))
    title = "One denoising step and one decode"
    with drawn(path, width=11, height=3.6 * len(parts) + 0.4, title=title) as figure:
        grid = figure.subplots(len(parts), 2, squeeze=False)
        for part, (time, memory) in zip(parts, grid, strict=True):
            its = [row for row in rows if row.part == part]
            _lines(time, its, [row.seconds for row in its])
            _named(time, f"{part}: time", "seconds", "side in px")
            peaks = [None if row.peak_bytes is None else row.peak_bytes / _GB for row in its]
            _lines(memory, its, peaks)
            _named(memory, f"{part}: peak memory", "GB", "side in px")
            _legend(memory)


def clear_chart(path: Path, rows: Sequence[ClearRow]) -> None:
    """Time and memory of full attention and CLEAR's by size; all axes are logarithmic."""
    title = "Attention of one layer of FLUX's shape"
    with drawn(path, width=11, height=4.0, title=title) as figure:
        time, memory = figure.subplots(1, 2)
        _lines(time, rows, [row.work for row in rows])
        spent = any(row.cpu_seconds for row in rows)
        _named(time, "Processor time" if spent else "Time", "seconds", "side in px")
        peaks = [None if row.peak_bytes is None else row.peak_bytes / _GB for row in rows]
        _lines(memory, rows, peaks)
        _named(memory, "Peak memory", "GB", "side in px")
        _legend(memory)


def outputs_chart(path: Path, runs: Sequence[OutputRun]) -> None:
    """Time and peak memory of making each format from a spool."""
    made = [run for run in runs if not run.note]
    names = [f"{run.kind}, {run.size_px} px" for run in made]
    seconds = {"made": [run.seconds for run in made]}
    peaks = {"made": [run.peak_rss_bytes / _GB for run in made]}
    _two_panels(path, "Outputs", names, seconds, peaks)


def _two_panels(
    path: Path,
    title: str,
    names: Sequence[str],
    seconds: Mapping[str, Sequence[float]],
    peaks: Mapping[str, Sequence[float]],
) -> None:
    """Time and memory of ways, by what they were measured on."""
    height = 1.6 + 0.3 * len(seconds) * len(names)
    with drawn(path, width=11, height=height, title=title) as figure:
        time, memory = figure.subplots(1, 2, sharey=True)
        _bars(time, names, seconds, _seconds)
        _named(time, "Time", along="seconds")
        _bars(memory, names, peaks, _gigabytes)
        _named(memory, "Peak memory", along="GB")
        _legend(memory)


def _pairs(
    axes: Axes,
    names: Sequence[str],
    measured: Sequence[float],
    planned: Sequence[float],
    words: Callable[[float], str],
) -> None:
    """Upright bars: what was measured, with a line at what was planned."""
    places = range(len(names))
    axes.bar(places, measured, width=0.6, color=BLUE, label="measured")
    for place, value in zip(places, measured, strict=True):
        # At the foot, where no line of a plan runs through it.
        axes.annotate(words(value), (place, 0), (0, 4), textcoords="offset points",
                      ha="center", color="white", fontsize=9)  # fmt: skip
    left, right = [place - 0.38 for place in places], [place + 0.38 for place in places]
    axes.hlines(planned, left, right, linewidth=3, color=ORANGE, label="planned")
    axes.set_xticks(places, names)
    axes.set_ylim(0, 1.1 * max(*measured, *planned))


def _bars(
    axes: Axes,
    names: Sequence[str],
    values: Mapping[str, Sequence[float]],
    words: Callable[[float], str],
) -> None:
    """Lying bars in groups, the first on top."""
    thick = 0.8 / len(values)
    for number, (way, each) in enumerate(values.items()):
        label, colour = _WAYS[way]
        places = [place + (number - (len(values) - 1) / 2) * thick for place in range(len(each))]
        bars = axes.barh(places, each, height=thick * 0.92, color=colour, label=label)
        axes.bar_label(bars, labels=[words(value) for value in each], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.margins(x=0.2)


def _lines(axes: Axes, rows: Sequence[Row | ClearRow], values: Sequence[float | None]) -> None:
    """A line for each way; what failed has no point."""
    if not any(values):  # nothing that a logarithm could be taken of
        axes.text(0.5, 0.5, "nothing was measured", ha="center", va="center", color=GREY)
        axes.set(xticks=[], yticks=[])
        return
    colours = [GREY, ORANGE, BLUE, GREEN, RED]
    for colour, way in zip(colours, dict.fromkeys(row.way for row in rows), strict=False):
        pairs = zip(rows, values, strict=True)
        points = [(row.size_px, value) for row, value in pairs if row.way == way and value]
        sides, heights = zip(*points, strict=True) if points else ((), ())
        axes.plot(sides, heights, marker="o", color=colour, label=way)
    axes.set(xscale="log", yscale="log")
    sizes = sorted({row.size_px for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.yaxis.set_major_locator(_ticks())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _ticks() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1, 2, 5), numticks=12)


def _named(axes: Axes, title: str, up: str = "", along: str = "") -> None:
    axes.set_title(title)
    axes.set_ylabel(up)
    axes.set_xlabel(along)


def _legend(axes: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _gigabytes(value: float) -> str:
    return format_bytes(value * _GB)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return _MADE_BY.encode() in file.read(_HEAD_BYTES)
