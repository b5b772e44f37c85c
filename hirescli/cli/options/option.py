"""What every option of the command line is made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import typer


def option(
    *names: str, panel: str | None = None, metavar: str | None, text: str, **more: Any
) -> Any:
    """A typer option of ours: the help text carries unit, range and default itself."""
    return typer.Option(
        *names, metavar=metavar, help=text, rich_help_panel=panel, show_default=False, **more
    )


def whole(text: str) -> int:
    """Read a whole number; its range is the recipe's matter."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f'"{text}" is no whole number; write digits only') from None


def number(text: str) -> float:
    """Read a number; its range is the recipe's matter."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f'"{text}" is no number; write it like 2.5') from None


def words(*choices: str) -> Callable[[str], list[str]]:
    """Shell completion from fixed words; what is not among them is refused later, by name."""
    return lambda incomplete: [word for word in choices if word.startswith(incomplete)]


def paragraphs(docstring: str | None) -> str:
    """A docstring as help text: line ends only between paragraphs, the terminal wraps the rest."""
    parts = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)
