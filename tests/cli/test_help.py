"""Help is documentation: complete, on a page that is kept true, and its flags are frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from hirescli.cli.app import app
from hirescli.cli.help_page import flags, page

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"


def test_page_is_true() -> None:
    written = (DOCS / "help.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m hirescli.cli.help_page > docs/help.md"


def test_flags_are_frozen() -> None:
    """A flag that goes or changes breaks scripts: change flags.txt only on purpose."""
    assert flags() == (HERE / "flags.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("command", ["generate", "plan"])
def test_every_option_says_its_default(command: str) -> None:
    for parameter in get_command(app).commands[command].params:
        if not getattr(parameter, "is_flag", False):
            assert "Default:" in parameter.help, parameter.name
        assert parameter.help.endswith("."), parameter.name


@pytest.mark.parametrize(
    "words",
    [["--help"], ["generate", "--help"], ["presets", "-h"], ["train", "--help"], ["bench", "-h"]],
    ids=" ".join,
)
def test_help_ends_with_0(hires: Callable, words: list[str]) -> None:
    ran = hires(*words)
    assert (ran.code, ran.err) == (0, "")
    assert "Usage: hires" in ran.out
    assert "\x1b" not in ran.out


def test_version(hires: Callable) -> None:
    ran = hires("--version")
    assert ran.code == 0
    assert ran.out.startswith("hires ")


def test_nothing_said_shows_help(hires: Callable) -> None:
    ran = hires()
    assert ran.code in (0, 2)
    assert "generate" in ran.out + ran.err
