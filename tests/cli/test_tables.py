"""Tables on wide and narrow terminals, in pipes, and without colours."""

from __future__ import annotations

import io

import pytest

from hirescli.cli.render import Sheet, console, table


class Terminal(io.StringIO):
    """What says that it is a terminal."""

    def isatty(self) -> bool:
        return True


ROWS = [
    ("1 base", "1024x1024", "12", "711.0 MB", "2.4 s"),
    ("2 upscale", "16384x16384", "3", "12345.6 MB", "1234.5 s"),
]


def sheet() -> Sheet:
    made = table("stage", "size", "steps", "memory", "time", right=("steps", "memory", "time"))
    for row in ROWS:
        made.add_row(*row)
    return made


def shown(columns: int, monkeypatch: pytest.MonkeyPatch, *, no_color: bool = True) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    console(stream).print(sheet())
    return stream.getvalue()


@pytest.mark.parametrize("columns", [200, 80, 60, 40, 24])
def test_no_width_breaks_a_number(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(columns, monkeypatch)
    for cell in (cell for row in ROWS for cell in row):
        for word in cell.split():
            assert word in text, f"{word} is broken at {columns} columns"
    assert max(map(len, text.splitlines())) <= columns


def test_wide_is_a_table_and_narrow_is_a_block_for_each_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "stage" in shown(100, monkeypatch).splitlines()[0].split()
    narrow = shown(30, monkeypatch)
    assert narrow.count("memory") == len(ROWS)
    assert "size    16384x16384" in [" ".join(line.split(" ")) for line in narrow.splitlines()]


def test_no_color_and_pipes_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in shown(100, monkeypatch)
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b" in shown(100, monkeypatch, no_color=False)
    pipe = io.StringIO()
    console(pipe).print(sheet())
    assert "\x1b" not in pipe.getvalue()
    assert max(map(len, pipe.getvalue().splitlines())) <= 100
