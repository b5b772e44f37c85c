"""The findings as a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hirescli.evaluation.charts import BLUE, GREEN, GREY, INK, ORANGE, RED, drawn
from hirescli.evaluation.findings.variants import SCALES, VARIANTS, Variant
from hirescli.evaluation.tables import table

_OPERATORS = ("teacher", "own", "linfusion", "unnormalised", "causal")
_LOSSES = ("linfusion", "no-noise", "no-teacher", "no-attention")
_COLOURS = {
    "teacher": GREY, "own": GREEN, "linfusion": BLUE, "unnormalised": RED, "causal": ORANGE,
    "no-noise": GREEN, "no-teacher": RED, "no-attention": ORANGE,
}  # fmt: skip


def findings_table(results: Mapping[str, Any]) -> list[str]:
    """The paragraphs of `hires bench findings`."""
    run, side_px = results["run"], results["side_px"]
    heads = ["", *(f"{scale}x ({scale * side_px} px)" for scale in SCALES), "error to the teacher"]
    rows = [_row(variant, results["variants"].get(variant.key, {})) for variant in VARIANTS]
    return [
        table(heads, rows),
        f"Fréchet distance of {run['pictures']} pictures, drawn in {run['sampling_steps']} steps\n"
        f"at once at their size (no doublings), to {run['held_out']} held-out renders of that\n"
        "size; less is better. Compare within a column only: so few pictures make all distances\n"
        f"larger than many would. Linear variants but the first learned {run['steps']} steps of "
        f"{run['batch']}\nsamples at {side_px} px from the same start; at other sizes none has "
        "learned. The error to\nthe teacher is the mean square of the difference of predictions "
        f"at {side_px} px, over that\nof the teacher's, on held-out renders.",
    ]


def findings_chart(path: Path, results: Mapping[str, Any], work: Path) -> None:
    """Distances by size, and one picture of every variant at every size."""
    with drawn(path, width=12, height=9.4, title="Linear attention with parts left out") as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.6))
        upper, lower = parts
        left, right = upper.subplots(1, 2)
        _lines(left, results, _OPERATORS, "Operators")
        _lines(right, results, _LOSSES, "Loss without one of its terms")
        grid = lower.subplots(len(SCALES), len(VARIANTS), squeeze=False)
        for row, scale in zip(grid, SCALES, strict=True):
            for axes, variant in zip(row, VARIANTS, strict=True):
                _picture(axes, work / f"{variant.key}-{scale}x.png")
                if scale == SCALES[0]:
                    axes.set_title(_wrapped(variant.title), fontsize=8, loc="center")
            row[0].set_ylabel(f"{scale}x")


def _row(variant: Variant, found: Mapping[str, Any]) -> list[str]:
    distances = found.get("distances", {})
    shown = [f"{distances[str(s)]:.1f}" if str(s) in distances else "-" for s in SCALES]
    error = found.get("teacher_error")
    return [variant.title, *shown, "-" if error is None else f"{error:.4f}"]


def _lines(axes: Any, results: Mapping[str, Any], keys: Sequence[str], title: str) -> None:
    for variant in VARIANTS:
        distances = results["variants"].get(variant.key, {}).get("distances", {})
        if variant.key in keys and len(distances) == len(SCALES):
            heights = [distances[str(scale)] for scale in SCALES]
            axes.plot(
                range(len(SCALES)), heights, marker="o", color=_COLOURS[variant.key],
                label=variant.title,
            )  # fmt: skip
    side_px = results["side_px"]
    axes.set_xticks(range(len(SCALES)), [f"{s}x\n{s * side_px} px" for s in SCALES])
    axes.set_title(title)
    axes.set_ylabel("Fréchet distance")
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _picture(axes: Any, path: Path) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if path.exists():
        from PIL import Image

        with Image.open(path) as picture:
            axes.imshow(picture, interpolation="nearest")
    else:
        axes.text(0.5, 0.5, "not drawn", ha="center", va="center", color=INK)


def _wrapped(title: str) -> str:
    from textwrap import fill

    return fill(title, 18)
