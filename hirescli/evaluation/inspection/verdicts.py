"""What the numbers of an inspection mean, in plain words, and whether to worry.

The limits lie between rendered pictures as they are and the same with planted faults, which
`calibration` counts, and leave the built-in model's own pictures room for what its stages redraw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hirescli.evaluation.inspection import repetition, seams, sharpness
from hirescli.evaluation.inspection.inspecting import Inspection
from hirescli.evaluation.inspection.seams import Seam

Verdict = Literal["fine", "look", "bad", "unknown"]
_ORDER: tuple[Verdict, ...] = ("unknown", "fine", "look", "bad")

SEAM_LOOK_Z, SEAM_BAD_Z = 10.0, 18.0
SEAM_BAD_LINES = 3  # two lines may be two edges
REPETITION_LOOK, REPETITION_BAD = 0.08, 0.2
SHIFT_LOOK, SHIFT_BAD = 2.5, 5.0
QUARTER_LOOK, QUARTER_BAD = 5.0, 8.0
CELL_LOOK, CELL_BAD = 25.0, 40.0
_NEAR = 0.05  # of a limit: where a digit less would show the limit itself
_DIRECTION = {"columns": "vertical", "rows": "horizontal"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        measure: "seams", "repetition", "colour drift" or "sharpness".
        value: The number, with its unit.
        verdict: "fine", "look" (at the picture), "bad", or "unknown".
        means: A sentence.
    """

    measure: str
    value: str
    verdict: Verdict
    means: str


def findings(found: Inspection) -> tuple[Finding, ...]:
    """What each measure says."""
    return _seams(found), _repetition(found), _drift(found), _sharpness(found)


def overall(lines: Sequence[Finding]) -> Verdict:
    """The worst of all; "unknown" only if all are."""
    return max((line.verdict for line in lines), key=_ORDER.index)


def seam_verdict(seam: Seam) -> Verdict:
    """Of the strongest regular lines."""
    if seam.z < SEAM_LOOK_Z:
        return "fine"
    return "bad" if seam.z >= SEAM_BAD_Z and seam.lines >= SEAM_BAD_LINES else "look"


def to_dict(found: Inspection) -> dict[str, Any]:
    """All numbers and verdicts, ready for JSON; no value is NaN or infinite."""
    lines = findings(found)
    facts = asdict(found) | {
        "path": str(found.path),
        "base": None if found.base is None else str(found.base),
        "verdict": overall(lines),
        "findings": [asdict(line) for line in lines],
    }
    return facts


def _seams(found: Inspection) -> Finding:
    if not found.seams:
        return _too_small("seams", seams.LEAST_PX)
    worst = max(found.seams, key=lambda seam: (_ORDER.index(seam_verdict(seam)), seam.z))
    verdict = seam_verdict(worst)
    value = f"{worst.ratio:.2f}x, z {worst.z:.0f}"
    if verdict == "fine":
        return Finding("seams", value, verdict, "No lines at regular distances stand out.")
    letter = "x" if worst.axis == "columns" else "y"
    means = (
        f"{worst.lines} {_DIRECTION[worst.axis]} lines, every {worst.period_px} px from"
        f" {letter} = {worst.offset_px} on, jump {worst.ratio:.1f} times as much as others."
    )
    if worst.channel != "Y":
        means = f"{means[:-1]}, in colour ({worst.channel})."
    tiles = " Tiles leave such lines." if verdict == "bad" else " Tiles or straight edges do."
    return Finding("seams", value, verdict, means + tiles)


def _repetition(found: Inspection) -> Finding:
    peaks = [peak for peak in (found.repetition, found.texture) if peak is not None]
    if not peaks:
        return _too_small("repetition", repetition.LEAST_PX)
    peak = max(peaks, key=lambda peak: peak.score)
    verdict = _graded(peak.score, REPETITION_LOOK, REPETITION_BAD)
    value = f"{peak.score:.2f} of 1"
    if verdict == "fine":
        return Finding("repetition", value, verdict, "No pattern comes again.")
    right, down = peak.lag_px
    side = "right" if right >= 0 else "left"
    means = f"Patterns come again {abs(right)} px to the {side} and {down} px below."
    return Finding("repetition", value, verdict, means)


def _drift(found: Inspection) -> Finding:
    drift = found.drift
    if drift is None:
        means = "No base stage was kept to compare with; name one with --base."
        return Finding("colour drift", "-", "unknown", means)
    verdict = max(
        _graded(drift.shift_delta_e, SHIFT_LOOK, SHIFT_BAD),
        _graded(drift.quarter_delta_e, QUARTER_LOOK, QUARTER_BAD),
        _graded(drift.max_delta_e, CELL_LOOK, CELL_BAD),
        key=_ORDER.index,
    )
    lightness, a, b = drift.mean_shift
    means = {
        "fine": "Colours are close to those of the base stage.",
        "look": "Colours have moved from those of the base stage.",
        "bad": "Colours are not those of the base stage.",
    }[verdict]
    moved = f" On average L {_signed(lightness)}, a {_signed(a)}, b {_signed(b)}."
    shift = _shown(drift.shift_delta_e, 1, (SHIFT_LOOK, SHIFT_BAD))
    quarter = _shown(drift.quarter_delta_e, 1, (QUARTER_LOOK, QUARTER_BAD))
    cell = _shown(drift.max_delta_e, 0, (CELL_LOOK, CELL_BAD))
    value = f"dE {shift}, quarter {quarter}, cell {cell}"
    return Finding("colour drift", value, verdict, means + moved)


def _sharpness(found: Inspection) -> Finding:
    if not found.levels:
        return _too_small("sharpness", sharpness.LEAST_PX)
    scale = found.effective_scale
    share = "-" if scale is None else f"{scale:.3g} of the size"
    value = f"{share}, {found.levels[0].above_plain_db:.1f} dB"
    if scale is None:
        means = "Too smooth to tell: no level holds more than rounding or an enlargement."
        return Finding("sharpness", value, "unknown", means)
    if scale == 1:
        return Finding("sharpness", value, "fine", "There is real detail down to single pixels.")
    width_px, height_px = round(found.width_px * scale), round(found.height_px * scale)
    means = f"Detail ends at about {width_px}x{height_px} px; the rest is enlarged."
    if found.repeats > 1:
        k = found.repeats
        means = f"Each pixel is repeated {k}x{k} times (nearest neighbour). {means}"
    return Finding("sharpness", value, "look" if scale >= 0.5 else "bad", means)


def _graded(value: float, look: float, bad: float) -> Verdict:
    return "bad" if value >= bad else "look" if value >= look else "fine"


def _shown(value: float, digits: int, limits: tuple[float, float]) -> str:
    """Rounded; near a limit with one more digit."""
    near = any(abs(value - limit) <= _NEAR * limit for limit in limits)
    return f"{value:.{digits + near}f}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # 0.0 takes the sign off a rounded zero


def _too_small(measure: str, least_px: int) -> Finding:
    return Finding(measure, "-", "unknown", f"Needs pictures of {least_px} px a side or more.")
