"""Sizes of the stages of one image: a base near the native size, then growth by at most 2."""

from __future__ import annotations

import math
from itertools import pairwise

from hirescli.errors import RequestError
from hirescli.planning.card import Card
from hirescli.units import format_pixels

Size = tuple[int, int]  # width, height in pixels
MAX_SIDE_PX = 2**20
MAX_ASPECT = 4  # a base of 4:1 has a long side of twice the native one: models repeat beyond
_MAX_RATIO = 2
# The base's area against native_px squared: room to hit the target's aspect on the multiples.
_LEAST_AREA, _MOST_AREA = 0.75, 1.1


def sizes(width_px: int, height_px: int, card: Card) -> tuple[Size, ...]:
    """Sizes of the stages: equal ratios of at most 2, every side a multiple.

    Raises:
        RequestError: If the size does not work, naming the nearest that do.
    """
    check_size(width_px, height_px, card)
    return _grown(base_size(width_px, height_px, card), (width_px, height_px), card)


def enlarged_sizes(source: Size, target: Size, card: Card) -> tuple[Size, ...]:
    """Sizes of the stages that enlarge a picture; the first is reached by resizing alone.

    It is at least about the model's native size: a smaller picture is resized to that first,
    whatever the ratio.

    Args:
        source: Of the picture, any size.
        target: What is asked for.
        card: Of the model.

    Raises:
        RequestError: If the target does not work, is not larger, or has another shape.
    """
    check_size(*target, card)
    if target[0] <= source[0] or target[1] <= source[1]:
        raise RequestError(
            f"size {format_pixels(*target)} is not larger than the picture's "
            f"{format_pixels(*source)}; use a larger --size, or only resize it"
        )
    across, down = target[0] / source[0], target[1] / source[1]
    if abs(across / down - 1) > card.multiple_px / min(target):
        raise RequestError(
            f"size {format_pixels(*target)} has another shape than the picture's "
            f"{format_pixels(*source)}; use --size {max(target)} to keep its shape, or crop it"
        )
    shortest = max(card.min_px, card.native_px / 2)
    scale = max(1.0, card.native_px / math.sqrt(source[0] * source[1]), shortest / min(source))
    if scale >= min(across, down):
        return (target,)
    start = tuple(_nearest(side * scale, card.multiple_px) for side in source)
    grown = _grown((start[0], start[1]), target, card)
    return grown if scale > 1 else grown[1:]


def doublings(size: Size, card: Card) -> int:
    """How many stages a cascade from a prompt takes from its base to this size."""
    return len(_grown(base_size(*size, card), size, card)) - 1


def fitted_size(source: Size, long_side_px: int, card: Card) -> Size:
    """The size with this long side that keeps a picture's shape, on the model's multiples."""
    scale = long_side_px / max(source)
    fitted = [_nearest(side * scale, card.multiple_px) for side in source]
    longer = source.index(max(source))
    fitted[longer] = long_side_px  # as it was asked for: checked, never rounded
    return fitted[0], fitted[1]


def _grown(base: Size, target: Size, card: Card) -> tuple[Size, ...]:
    ratio = max(target[0] / base[0], target[1] / base[1])
    upscales = math.ceil(math.log2(ratio)) if ratio > 1 else 0
    # Rounding to the multiple can push a ratio just above 2; one stage more mends that.
    for count in (upscales, upscales + 1, upscales + 2):
        grown = _grow(base, target, count, card.multiple_px)
        if all(_grows_right(small, large) for small, large in pairwise(grown)):
            return grown
    raise AssertionError(f"no stages for {format_pixels(*target)}")


def base_size(width_px: int, height_px: int, card: Card) -> tuple[int, int]:
    """Size of the base: the target's aspect at about the native area, or a small target itself.

    Raises:
        RequestError: If the card's multiple is too coarse for that aspect.
    """
    native_area = card.native_px**2
    if width_px * height_px <= native_area:
        return width_px, height_px
    aspect = max(width_px, height_px) / min(width_px, height_px)
    multiple_px = card.multiple_px
    fits = []
    for short_px in range(card.min_px, card.native_px + 1, multiple_px):
        long_px = min(_nearest(short_px * aspect, multiple_px), 2 * card.native_px)
        area = long_px * short_px / native_area
        if _LEAST_AREA <= area <= _MOST_AREA:
            distortion = abs(math.log(long_px / short_px / aspect))
            fits.append((round(distortion, 9), abs(math.log(area)), long_px, short_px))
    if not fits:
        raise RequestError(
            f"size {format_pixels(width_px, height_px)} has no base stage: no picture of its "
            f"shape near {card.native_px} px has sides that are multiples of {multiple_px} px; "
            "use another --size"
        )
    _, _, long_px, short_px = min(fits)
    # Rounding must not leave the base larger than the target.
    long_px, short_px = min(long_px, max(width_px, height_px)), min(short_px, width_px, height_px)
    return (long_px, short_px) if width_px >= height_px else (short_px, long_px)


def check_size(width_px: int, height_px: int, card: Card) -> None:
    """Refuse a size that the model cannot make.

    Raises:
        RequestError: Naming every reason and the nearest sizes that work.
    """
    reasons = [
        reason
        for side, side_px in (("width", width_px), ("height", height_px))
        for reason in _side_faults(side, side_px, card)
    ]
    if max(width_px, height_px) > MAX_ASPECT * min(width_px, height_px):
        reasons.append(f"the long side is more than {MAX_ASPECT} times the short one")
    if reasons:
        works = " or ".join(f"{w}x{h}" for w, h in nearest_sizes(width_px, height_px, card))
        raise RequestError(
            f"size {width_px}x{height_px} does not work with model `{card.name}`: "
            f"{'; '.join(reasons)}. Nearest sizes that work: {works}"
        )


def nearest_sizes(width_px: int, height_px: int, card: Card) -> list[tuple[int, int]]:
    """The one or two sizes nearest to the asked one that work, smaller first."""
    multiple_px = card.multiple_px
    found = set()
    for rounded in (math.floor, math.ceil):
        width, height = (
            _within(rounded(side_px / multiple_px) * multiple_px, card)
            for side_px in (width_px, height_px)
        )
        shortest = math.ceil(max(width, height) / MAX_ASPECT / multiple_px) * multiple_px
        found.add((max(width, shortest), max(height, shortest)))
    return sorted(found)


def native_warning(width_px: int, height_px: int, card: Card) -> str | None:
    """A warning for a picture much smaller than the model's native size, else None."""
    if 4 * width_px * height_px > card.native_px**2:
        return None
    return (
        f"{format_pixels(width_px, height_px)} is far below the {card.native_px} px that model "
        f"`{card.name}` was trained at; make it at {card.native_px} or more and shrink it"
    )


def _grow(
    base: tuple[int, int], target: tuple[int, int], upscales: int, multiple_px: int
) -> tuple[tuple[int, int], ...]:
    """Geometric means between base and target, rounded to the multiple; the ends are exact."""
    if upscales == 0:
        return (target,)
    between = [
        (
            _nearest(base[0] * (target[0] / base[0]) ** (k / upscales), multiple_px),
            _nearest(base[1] * (target[1] / base[1]) ** (k / upscales), multiple_px),
        )
        for k in range(1, upscales)
    ]
    return (base, *between, target)


def _grows_right(small: tuple[int, int], large: tuple[int, int]) -> bool:
    sides = tuple(zip(small, large, strict=True))
    return all(s <= b <= _MAX_RATIO * s for s, b in sides) and small != large


def _side_faults(side: str, side_px: int, card: Card) -> list[str]:
    if side_px < card.min_px:
        return [f"{side} {side_px} px is below the least of {card.min_px} px"]
    if side_px > MAX_SIDE_PX:
        return [f"{side} {side_px} px is above the limit of {MAX_SIDE_PX} px"]
    if side_px % card.multiple_px:
        return [f"{side} {side_px} px is not a multiple of {card.multiple_px} px"]
    return []


def _nearest(side_px: float, multiple_px: int) -> int:
    return max(multiple_px, math.floor(side_px / multiple_px + 0.5) * multiple_px)


def _within(side_px: int, card: Card) -> int:
    highest_px = MAX_SIDE_PX // card.multiple_px * card.multiple_px
    return min(max(side_px, card.min_px), highest_px)
