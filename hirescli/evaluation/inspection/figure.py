"""An inspection as a picture: the image itself and a panel for each measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hirescli.evaluation.charts import BLUE, GREY, INK, ORANGE, RED, drawn
from hirescli.evaluation.inspection.drift import GRID
from hirescli.evaluation.inspection.inspecting import Inspection, Traces
from hirescli.evaluation.inspection.sharpness import REAL_DB, ROUNDING_DB
from hirescli.evaluation.inspection.verdicts import (
    CELL_LOOK,
    REPETITION_LOOK,
    SEAM_BAD_Z,
    SEAM_LOOK_Z,
    Finding,
    findings,
    seam_verdict,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hirescli.evaluation.inspection.drift import Floats

_MARKS = {"fine": ("fine", BLUE), "look": ("LOOK", ORANGE), "bad": ("BAD", RED),
          "unknown": ("not told", GREY)}  # fmt: skip
_DIRECTIONS = (("columns", BLUE, "vertical lines"), ("rows", ORANGE, "horizontal lines"))


def draw(path: Path, found: Inspection, traces: Traces) -> None:
    """Write the figure.

    Args:
        path: A .png file that `hirescli.evaluation.charts.check_target` lets pass.
        found: What was measured.
        traces: What it was read from.
    """
    title = f"{_printable(found.path.name)}, {found.width_px}x{found.height_px} px"
    seams, repetition, drift, sharpness = findings(found)
    with drawn(path, width=13, height=8, title=title) as figure:
        places = figure.subplot_mosaic([["picture", "seams", "sharpness"],
                                        ["words", "repetition", "drift"]])  # fmt: skip
        _picture(places["picture"], found, traces)
        _words(places["words"], (seams, repetition, drift, sharpness))
        _seams(places["seams"], traces, seams)
        _repetition(places["repetition"], found, traces, repetition)
        _drift(places["drift"], found, drift)
        _sharpness(places["sharpness"], found, sharpness)


def _picture(axes: Axes, found: Inspection, traces: Traces) -> None:
    axes.imshow(traces.small, interpolation="antialiased")
    factor = traces.small_factor
    for seam in found.seams:
        if seam_verdict(seam) == "fine":
            continue
        line = axes.axvline if seam.axis == "columns" else axes.axhline
        side_px = found.width_px if seam.axis == "columns" else found.height_px
        for place in range(seam.offset_px, side_px, seam.period_px):
            line(place / factor - 0.5, color=RED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_title("The picture")
    axes.set_axis_off()


def _words(axes: Axes, lines: tuple[Finding, ...]) -> None:
    axes.set_axis_off()
    for number, line in enumerate(lines):
        y = 0.98 - 0.25 * number
        word, colour = _MARKS[line.verdict]
        axes.text(0, y, line.measure, fontweight="bold", va="top")
        axes.text(0.34, y, word, fontweight="bold", va="top", color=colour)
        axes.text(0.98, y, line.value, va="top", ha="right", color=INK, fontsize=9)
        axes.text(0, y - 0.07, _wrapped(line.means), va="top", fontsize=9)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _seams(axes: Axes, traces: Traces, finding: Finding) -> None:
    """The confidence of the strongest lines of each period."""
    _title(axes, "Lines at regular distances", finding)
    if not traces.periods:
        return _nothing(axes, finding.means)
    for axis, colour, label in _DIRECTIONS:
        best: dict[int, float] = {}
        for seam in traces.periods:
            if seam.axis == axis:
                best[seam.period_px] = max(best.get(seam.period_px, 0), seam.z)
        axes.plot(list(best), list(best.values()), ".", markersize=3, color=colour, label=label)
    axes.axhspan(SEAM_LOOK_Z, SEAM_BAD_Z, color=ORANGE, alpha=0.12, linewidth=0)
    top = max(SEAM_BAD_Z * 1.4, 1.25 * max(seam.z for seam in traces.periods))
    axes.axhspan(SEAM_BAD_Z, top, color=RED, alpha=0.12, linewidth=0)
    axes.set(
        ylim=(0, top), xlabel="distance of the lines in px", ylabel="confidence z", xscale="log"
    )
    ticks = [px for px in (64, 128, 256, 512, 1024, 2048, 4096) if px <= max(
        seam.period_px for seam in traces.periods)]  # fmt: skip
    axes.set_xticks(ticks, [str(px) for px in ticks])
    axes.minorticks_off()
    axes.legend(loc="upper right", fontsize=9, markerscale=3)


def _repetition(axes: Axes, found: Inspection, traces: Traces, finding: Finding) -> None:
    """The score of each lag; the peak is circled if it is one."""
    _title(axes, "What comes again", finding)
    if traces.scores is None or found.repetition is None:
        return _nothing(axes, finding.means)
    height, width = traces.scores.shape
    factor = traces.small_factor
    half_px, down_px = width // 2 * factor, height * factor
    image = axes.imshow(
        _largest_of_squares(traces.scores),
        extent=(-half_px, half_px, down_px, 0),
        cmap="magma_r",
        vmin=0,
        vmax=max(REPETITION_LOOK, float(traces.scores.max())),
        interpolation="nearest",
        aspect="auto",
    )
    axes.figure.colorbar(image, ax=axes, label="score", shrink=0.9)
    if found.repetition.score >= REPETITION_LOOK:
        x, y = found.repetition.lag_px
        axes.plot([x], [y], "o", markersize=16, markerfacecolor="none", color=RED)
    axes.set(xlabel="px to the right", ylabel="px below")
    axes.grid(visible=False)


def _drift(axes: Axes, found: Inspection, finding: Finding) -> None:
    _title(axes, "Colour against base", finding)
    if found.drift is None:
        return _nothing(axes, "No base stage was kept.\nName one with --base FILE.")
    values = np.array(found.drift.delta_e)
    image = axes.imshow(
        values,
        cmap="viridis",
        vmin=0,
        vmax=max(CELL_LOOK, float(values.max())),
        interpolation="nearest",
    )
    axes.figure.colorbar(image, ax=axes, label="difference dE", shrink=0.9)
    axes.set_xlabel(f"means over cells, {GRID} along the longer side")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)


def _sharpness(axes: Axes, found: Inspection, finding: Finding) -> None:
    """Energy of each level's finest octave, beside that of a plain enlargement."""
    _title(axes, "Detail in each octave", finding)
    if not found.levels:
        return _nothing(axes, finding.means)
    places = range(len(found.levels))
    real = [level.octave_db for level in found.levels]
    plain = [level.octave_db - level.above_plain_db for level in found.levels]
    axes.fill_between(places, plain, real, color=BLUE, alpha=0.12, linewidth=0)
    axes.plot(places, real, marker="o", color=BLUE, label="this picture")
    axes.plot(places, plain, marker="o", color=GREY, label="enlarged from half the size")
    for place, (low, high) in enumerate(zip(plain, real, strict=True)):
        if high - low < REAL_DB or high < ROUNDING_DB:
            axes.plot([place], [high], "o", markersize=12, markerfacecolor="none", color=RED)
    axes.set_xticks(places, [str(max(level.width_px, level.height_px)) for level in found.levels])
    axes.set(xlabel="longer side of the level in px", ylabel="energy in dB")
    axes.legend(loc="best", fontsize=9)


def _title(axes: Axes, text: str, finding: Finding) -> None:
    axes.set_title(text)
    word, colour = _MARKS[finding.verdict]
    axes.set_title(f"{word} ", loc="right", color=colour)


def _nothing(axes: Axes, why: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, _wrapped(why), ha="center", va="center", color=GREY)


def _largest_of_squares(scores: Floats, most: int = 160) -> Floats:
    """So coarse that a single peak can be seen, and none is lost."""
    side = max(1, -(-max(scores.shape) // most))
    height, width = (size // side * side for size in scores.shape)
    squares = scores[:height, :width].reshape(height // side, side, width // side, side)
    made: Floats = squares.max(axis=(1, 3))
    return made


def _wrapped(text: str, columns: int = 52) -> str:
    import textwrap

    return "\n".join(textwrap.fill(line, columns) for line in text.splitlines())


def _printable(name: str) -> str:
    """A file's name without what no font has."""
    return "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in name)
