"""The page that tables are put into, and what is printed of it."""

from __future__ import annotations

import sys
from pathlib import Path

from hirescli.cli.evaluating.shared import write_text
from hirescli.errors import RequestError
from hirescli.evaluation.page import with_section


def read_page(path: Path | None) -> str:
    """What stands in the page now; read before hours are spent on measuring.

    Args:
        path: A Markdown file; it need not be there. None: no page is written.

    Raises:
        RequestError: If its folder is missing, or it is no text.
    """
    if path is None:
        return ""
    if not path.parent.is_dir():
        raise RequestError(f"output folder {path.parent} does not exist; make it first")
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"output {path} is no Markdown file to put tables into ({error}); "
            "give another with --output"
        ) from error


def write_page(path: Path, before: str, section: str) -> None:
    """Write the page with a section put in, whole or not at all."""
    write_text(path, with_section(before, section))


def print_section(section: str) -> None:
    """Tables for people on a terminal, Markdown for everything else."""
    if not sys.stdout.isatty():
        print(section)
        return
    from rich.markdown import Markdown

    from hirescli.cli.render import console

    console().print(Markdown(section))
