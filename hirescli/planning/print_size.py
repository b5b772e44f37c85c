"""Sizes on paper: from centimetres or inches to pixels, and back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from hirescli.errors import RequestError
from hirescli.recipe import Recipe

_CM_PER_INCH = Fraction(254, 100)
_PER_INCH = {"mm": 10 * _CM_PER_INCH, "cm": _CM_PER_INCH, "in": Fraction(1)}
_MULTIPLE_PX = 8  # what all models take
_SIZE = re.compile(
    r"([0-9]{1,6}(?:\.[0-9]{1,4})?)\s*[x×]\s*"  # noqa: RUF001
    r"([0-9]{1,6}(?:\.[0-9]{1,4})?)\s*(mm|cm|in)"
    r"\s*@\s*([0-9]{1,5}(?:\.[0-9]{1,4})?)\s*(?:dpi)?"
)
_LEAST_DPI, _MOST_DPI = 1, 10_000


@dataclass(frozen=True)
class PrintSize:
    """What is asked for on paper.

    Attributes:
        width_in, height_in: In inches.
        unit: "mm", "cm" or "in", as it was said.
        dpi: Pixels per inch.
    """

    width_in: Fraction
    height_in: Fraction
    unit: str
    dpi: Fraction

    @property
    def width_px(self) -> int:
        """The least multiple of 8 that covers the width."""
        return _covering(self.width_in * self.dpi)

    @property
    def height_px(self) -> int:
        """The least multiple of 8 that covers the height."""
        return _covering(self.height_in * self.dpi)

    def fragment(self) -> dict[str, Any]:
        """The size as a partial recipe."""
        return {"width_px": self.width_px, "height_px": self.height_px, "dpi": float(self.dpi)}

    def said(self) -> str:
        """What became of it, in words."""
        asked = f"{_in(self.width_in, self.unit)}x{_in(self.height_in, self.unit)} {self.unit}"
        exact = f"{_short(self.width_in * self.dpi)}x{_short(self.height_in * self.dpi)} px"
        made = f"{self.width_px}x{self.height_px} px"
        if exact == made:
            return f"{asked} at {_short(self.dpi)} dpi is {made}"
        width_in, height_in = self.width_px / self.dpi, self.height_px / self.dpi
        covered = f"{_in(width_in, self.unit)}x{_in(height_in, self.unit)} {self.unit}"
        return (
            f"{asked} at {_short(self.dpi)} dpi is {exact}; made are {made}, the nearest "
            f"multiples of {_MULTIPLE_PX} that cover it: {covered}, trim the rest"
        )


def parse_print(text: str) -> PrintSize:
    """Read a size on paper such as "60x40cm@300" or "24x16in@300".

    Raises:
        RequestError: If it is none.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise RequestError(
            f'print size "{text}" is not understood; write it like 60x40cm@300 or 24x16in@300, '
            "with the pixels per inch behind @"
        )
    per_inch = _PER_INCH[match[3]]
    asked = PrintSize(
        Fraction(match[1]) / per_inch, Fraction(match[2]) / per_inch, match[3], Fraction(match[4])
    )
    if not _LEAST_DPI <= asked.dpi <= _MOST_DPI:
        raise RequestError(
            f'print size "{text}": {match[4]} pixels per inch do not work, {_LEAST_DPI} to '
            f"{_MOST_DPI} do"
        )
    if not asked.width_in or not asked.height_in:
        raise RequestError(f'print size "{text}" has a side of 0; write it like 60x40cm@300')
    return asked


def printed(recipe: Recipe) -> dict[str, float]:
    """The size of a picture on paper, in centimetres and inches at its resolution."""
    sides = {"width": recipe.width_px / recipe.dpi, "height": recipe.height_px / recipe.dpi}
    inches = {f"{name}_in": round(side, 3) for name, side in sides.items()}
    cm = {f"{name}_cm": round(side * float(_CM_PER_INCH), 3) for name, side in sides.items()}
    return {"dpi": recipe.dpi} | cm | inches


def printed_words(recipe: Recipe) -> str:
    """The same in words: "138.7x138.7 cm (54.6x54.6 in) at 300 dpi"."""
    return paper_words(recipe.width_px, recipe.height_px, recipe.dpi)


def paper_words(width_px: int, height_px: int, dpi: float) -> str:
    """The size of pixels on paper in words, in centimetres and inches."""
    inches = [px / dpi for px in (width_px, height_px)]
    cm = [side * float(_CM_PER_INCH) for side in inches]
    return f"{cm[0]:.1f}x{cm[1]:.1f} cm ({inches[0]:.1f}x{inches[1]:.1f} in) at {dpi:g} dpi"


def _covering(px: Fraction) -> int:
    return -(-px // _MULTIPLE_PX) * _MULTIPLE_PX


def _in(inches: Fraction, unit: str) -> str:
    return _short(inches * _PER_INCH[unit])


def _short(value: Fraction) -> str:
    return f"{float(value):.2f}".rstrip("0").rstrip(".")
