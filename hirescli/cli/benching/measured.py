"""What every kind of measurement gives, and the words that all of them write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from hirescli.errors import RequestError
from hirescli.evaluation.page import machine


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        text: A section of the page, in Markdown.
        facts: The same for JSON.
        draw: Draws it into a PNG file.
    """

    text: str
    facts: dict[str, Any]
    draw: Callable[[Path], None]


def ran_here() -> str:
    """The day and the machine, the head of a section."""
    return f"{date.today().isoformat()}. Machine: {machine()}."


def command(what: str, asked: Mapping[str, Any]) -> str:
    """The words that a measurement was asked for with."""
    return f"hires bench {what}" + "".join(f" --{key} {value}" for key, value in asked.items())


def whole_numbers(name: str, text: str, *, example: str) -> list[int]:
    """Read numbers between commas, the smallest first.

    Args:
        name: Of the option.
        text: Like "128,64".
        example: What the message shows.

    Raises:
        RequestError: If one is no number.
    """
    try:
        return sorted(int(number) for number in text.split(","))
    except ValueError:
        raise RequestError(f'{name} "{text}" are not understood; write {example}') from None
