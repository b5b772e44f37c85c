"""Text below the pictures of a sheet."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

_INK, _QUIET = (40, 40, 42), (128, 126, 122)
# Of fonts that systems have, those with many scripts first; Pillow's own has Latin letters only.
_FONTS = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
_SCRIPTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "unifont.otf")
_PROMPT_LINES = 2
_LEAST_WIDTH_EM = 14
_MOST_CHARACTERS = 400  # of a prompt; more are never seen
_MISSING = "\U0010ffff"  # no font has it


@dataclass(frozen=True)
class Caption:
    """What is written below a picture: one line, and a text of at most two."""

    head: str
    text: str


class Captions:
    """Draws captions in a size that fits thumbs.

    Args:
        thumb_px: The longest side of a thumb.
    """

    def __init__(self, thumb_px: int) -> None:
        self.size_px = max(10, min(28, thumb_px // 24))
        self._line_px = round(self.size_px * 1.4)

    @property
    def height_px(self) -> int:
        """Of a whole caption with the space above it."""
        return self._line_px * (1 + _PROMPT_LINES) + self.size_px

    @property
    def least_width_px(self) -> int:
        """What a seed and a size need on one line."""
        return _LEAST_WIDTH_EM * self.size_px

    def draw(self, on: Image.Image, caption: Caption, x0: int, y0: int, width_px: int) -> None:
        """Write a caption below a picture that ends at row y0; what is too long is cut."""
        from PIL import ImageDraw

        pen = ImageDraw.Draw(on)
        y = y0 + self.size_px * 2 // 3
        head, text = _printable(caption.head), _printable(caption.text)
        font = _font(self.size_px, head)
        pen.text((x0, y), _cut(head, font, width_px), font=font, fill=_QUIET)
        font = _font(self.size_px, text)
        for number, line in enumerate(_lines(text, font, width_px)):
            pen.text((x0, y + (number + 1) * self._line_px), line, font=font, fill=_INK)


def _printable(text: str) -> str:
    """The text on one line, without what no font has a form for."""
    shown = "".join(c if c.isprintable() else " " for c in text[:_MOST_CHARACTERS])
    return " ".join(shown.split())


def _lines(text: str, font: Font, width_px: int) -> list[str]:
    """The text in lines that fit, broken between words where there are any; the last one cut."""
    lines: list[str] = []
    while text and len(lines) < _PROMPT_LINES - 1:
        fits = _fitting(text, font, width_px)
        if fits == len(text):
            break
        end = text.rfind(" ", 1, fits + 1)
        end = end if end > 0 else max(1, fits)
        lines.append(text[:end])
        text = text[end:].lstrip()
    return [*lines, _cut(text, font, width_px)]


def _cut(text: str, font: Font, width_px: int) -> str:
    fits = _fitting(text, font, width_px)
    if fits == len(text):
        return text
    dots = "..."
    return text[: _fitting(text, font, width_px - font.getlength(dots))].rstrip() + dots


def _fitting(text: str, font: Font, width_px: float) -> int:
    """How many characters fit."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width_px:
            low = middle
        else:
            high = middle - 1
    return low


def _font(size_px: int, text: str) -> Font:
    """The first font that has all of a text; else the first there is."""
    found = [_named(name, size_px) for name in (*_FONTS, *_SCRIPTS)]
    fonts: list[Font] = [font for font in found if font is not None]
    fonts.append(_own(size_px))
    return next((font for font in fonts if _has(font, text)), fonts[0])


@cache
def _named(name: str, size_px: int) -> FreeTypeFont | None:
    from PIL import ImageFont

    try:
        return ImageFont.truetype(name, size_px)
    except OSError:
        return None


@cache
def _own(size_px: int) -> Font:
    from PIL import ImageFont

    return ImageFont.load_default(size_px)


def _has(font: Font, text: str) -> bool:
    missing = bytes(font.getmask(_MISSING))
    return all(bytes(font.getmask(c)) != missing for c in set(text) if not c.isspace())
