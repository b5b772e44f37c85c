"""What was measured, as Markdown tables with the words that explain them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hirescli.units import format_bytes

if TYPE_CHECKING:
    from hirescli.evaluation.bands import Comparison
    from hirescli.evaluation.batching import BatchRun
    from hirescli.evaluation.benchmark import ImageRun
    from hirescli.evaluation.decoding import Decode

_WAYS = {"plain": "whole image", "banded": "in bands", "tiled": "diffusers' tiling"}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("| --- ", "|---")


def pictures_table(runs: Sequence[ImageRun]) -> list[str]:
    """The paragraphs of `hires bench builtin`."""
    rows = [
        [
            f"{run.width_px}x{run.height_px}",
            str(run.stages),
            f"{run.seconds:.1f} s",
            _growth(run.seconds, before.seconds if before else None),
            f"{run.planned_seconds:.1f} s",
            format_bytes(run.peak_rss_bytes),
            _growth(run.peak_rss_bytes, before.peak_rss_bytes if before else None),
            format_bytes(run.planned_peak_bytes),
            format_bytes(run.planned_spill_bytes),
            format_bytes(run.file_bytes),
            f"{run.journal_share:.1%}",
            {None: "not tried", True: "yes", False: "NO"}[run.same_bytes],
        ]
        for before, run in zip([None, *runs], runs, strict=False)
    ]
    read = [[f"{run.width_px}x{run.height_px}", *run.readers.values()] for run in runs]
    heads = [
        "size", "stages", "time", "grown", "planned", "peak memory", "grown", "planned", "spilled",
        "file", "journal", "same bytes again",
    ]  # fmt: skip
    return [
        table(heads, rows),
        "Time is the whole command's, loading included. Peak memory is the resident set's\n"
        "maximum, measured by the system. Grown is against the row above. Spilled are values on\n"
        "disk at their peak, reserved as planned. Journal is the share of time that goes into\n"
        "remembering what is finished. The levels of each file, as read back:",
        table(["size", "tifffile", "libvips", "Pillow"], read),
    ]


def batch_table(runs: Sequence[BatchRun]) -> list[str]:
    """The paragraphs of `hires bench batch`."""
    rows = [
        [
            f"{run.width_px}x{run.height_px}",
            str(run.jobs),
            f"{run.seconds:.1f} s",
            f"{run.start_seconds:.1f} s",
            f"{run.stages_seconds:.1f} s",
            f"{run.writing_seconds:.1f} s",
            f"{run.outside_share:.1%}",
        ]
        for run in runs
    ]
    return [
        table(["size", "jobs", "time", "start", "stages", "writing", "outside both"], rows),
        "Time is the whole command's. Start is what goes before the first picture: imports,\n"
        "planning, loading the model. Outside is the share of the time, start included, that is\n"
        "neither in stages nor in writing files.",
    ]


def bands_table(figures: Sequence[Comparison]) -> list[str]:
    """The paragraphs of `hires bench bands`."""
    heads = [
        "component", "size", "rows", "passes", "plain, best (median)", "banded, best (median)",
        "ratio, best (median)", "error",
    ]  # fmt: skip
    times = [
        [
            *_named(each),
            str(each.passes),
            _seconds(each.plain_seconds),
            _seconds(each.banded_seconds),
            f"{each.best_ratio:.2f} ({each.median_ratio:.2f})",
            f"{each.error:.1e}",
        ]
        for each in figures
    ]
    memory = [
        [
            *_named(each),
            format_bytes(each.planned_peak_bytes),
            format_bytes(each.banded_peak_bytes),
            format_bytes(each.plain_peak_bytes),
            f"{each.work:.2f}",
            f"{each.exact_px} px",
            f"{each.plain_from_exact:.1e}",
            f"{each.banded_from_exact:.1e}",
        ]
        for each in figures
    ]
    return [
        table(heads, times),
        "Plain and banded calls took turns in one process; calls of less than 2 s five times in\n"
        "each turn. Error is the largest difference of the two results, in standard deviations\n"
        "of the plain one. Rows are latent rows.",
        table(
            ["component", "size", "rows", "planned peak", "banded peak", "plain peak",
             "arithmetic", "exact at", "plain error", "banded error"],
            memory,
        ),
        "Planned is what the schedule says of bands and stores. Measured peaks are the resident\n"
        "set's maximum during a call less what was resident just before it: interpreter,\n"
        "libraries, weights, and what a call of 64 px had left; the result itself is in them.\n"
        "Arithmetic is the banded call's over the plain one's. The last two errors are from the\n"
        "plain call in float64, at the size beside them.",
    ]  # fmt: skip


def decodes_table(figures: Sequence[Decode]) -> list[str]:
    """The paragraphs of `hires bench vae`."""
    heads = [
        "size", "decoded", "tiles", "time", "peak memory", "planned", "error", "rmse", "PSNR",
    ]  # fmt: skip
    rows = [
        [
            f"{each.width_px}x{each.height_px}",
            _WAYS[each.way],
            str(each.outcome.tiles),
            f"{each.outcome.seconds:.1f} s",
            format_bytes(each.outcome.peak_bytes),
            _amount(each.outcome.planned_peak_bytes),
            *(["-"] * 3 if each.way == "plain" else _errors(each)),
        ]
        for each in figures
    ]
    return [
        table(heads, rows),
        "Each decode ran once, in a process of its own. Errors are from the whole-image decode:\n"
        "the largest and the root mean square difference in its standard deviations, and PSNR\n"
        "over its range. Peak memory is the resident set's maximum during the decode less what\n"
        "was resident just before it: interpreter, libraries, weights, and what a decode of\n"
        "64 px had left; the picture itself is in it. Planned is what the schedule says of\n"
        "bands and stores. A picture of one tile was not tiled at all.",
    ]


def _growth(now: float, before: float | None) -> str:
    return "-" if before is None else f"x{now / before:.2f}"


def _named(each: Comparison) -> list[str]:
    return [each.component, f"{each.width_px}x{each.height_px}", str(each.rows)]


def _seconds(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.2f} s ({statistics.median(seconds):.2f} s)"


def _amount(amount_bytes: int | None) -> str:
    return "-" if amount_bytes is None else format_bytes(amount_bytes)


def _errors(each: Decode) -> list[str]:
    psnr = "equal" if each.psnr_db is None else f"{each.psnr_db:.1f} dB"
    return [f"{each.max_error:.1e}", f"{each.rmse:.1e}", psnr]
