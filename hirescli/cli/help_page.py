"""The page docs/help.md: every command's help, from the commands themselves.

`python -m hirescli.cli.help_page > docs/help.md` writes it; a test keeps it true.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from hirescli.cli.app import app

_WIDTH = 88
_HEAD = """# Commands and options

Made by `python -m hirescli.cli.help_page > docs/help.md`; do not edit by hand.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD]
    for path, text in helps(get_command(app), "hires", None):
        parts.append(f"## {path}\n\n```text\n{text.strip()}\n```\n")
    return "\n".join(parts)


def flags() -> list[str]:
    """All commands with all their options, one a line, for a test that freezes them."""
    return [
        f"{path} {' / '.join(name for name in (*parameter.opts, *parameter.secondary_opts))}"
        for path, command in _tree(get_command(app), "hires")
        for parameter in command.params
        if "completion" not in parameter.name  # typer's own, different by shell
    ]


def helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    """The path and the plain help text of a command and all below it."""
    command.rich_markup_mode = None  # no boxes: the page shall be read as text, too
    context = command.context_class(
        command,
        info_name=name,
        parent=parent,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield context.command_path, context.get_help()
    for child_name, child in getattr(command, "commands", {}).items():
        yield from helps(child, child_name, context)


def _tree(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _tree(child, f"{path} {name}")


if __name__ == "__main__":
    sys.stdout.write(page())
