"""What CLEAR's attention asks of the sizes of stages: whole squares, and room for its window.

A token of a transformer is `card.multiple_px` pixels on a side.
"""

from __future__ import annotations

import math

from hirescli.errors import RequestError
from hirescli.planning.card import Card
from hirescli.planning.sizes import Size, nearest_sizes
from hirescli.units import format_pixels


def pooled_card(card: Card) -> Card:
    """The card whose sizes are whole squares of pooled tokens, so that stages between are too."""
    multiple_px = card.multiple_px * card.clear_down_factor
    return card.model_copy(
        update={
            "multiple_px": multiple_px,
            "min_px": math.ceil(card.min_px / multiple_px) * multiple_px,
            "native_px": max(1, round(card.native_px / multiple_px)) * multiple_px,
        }
    )


def check_pooled(size: Size, card: Card) -> None:
    """Refuse a picture that is no whole squares of pooled tokens.

    Args:
        size: Of the picture that is asked for.
        card: Of the model.

    Raises:
        RequestError: Naming the nearest sizes that work.
    """
    pooled = pooled_card(card)
    if all(side % pooled.multiple_px == 0 for side in size):
        return
    works = " or ".join(f"{w}x{h}" for w, h in nearest_sizes(*size, pooled))
    raise RequestError(
        f"size {format_pixels(*size)} does not work with CLEAR's down factor "
        f"{card.clear_down_factor}: sides are multiples of {pooled.multiple_px} px, "
        f"{card.clear_down_factor} tokens of {card.multiple_px} px. "
        f"Nearest sizes that work: {works}"
    )


def check_window(size: Size, card: Card) -> None:
    """Refuse a stage with fewer rows or columns of tokens than the window.

    Args:
        size: Of the stage, with CLEAR's attention.
        card: Of the model.

    Raises:
        RequestError: Naming the least side that works.
    """
    side = min(size) // card.multiple_px
    if side < card.clear_window:
        raise RequestError(
            f"CLEAR's window of {card.clear_window} tokens needs sides of at least "
            f"{card.clear_window * card.multiple_px} px, and a stage has {format_pixels(*size)}; "
            f"use a larger --size, --attention full, or weights with a window of at most {side}"
        )
