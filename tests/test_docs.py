"""The docs hold: links lead somewhere, commands parse, examples compile and run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(hires [^`\n]+)`")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OPERATORS = re.compile(r"[|&;<>()]+")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> Iterator[str]:
    for found, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if found == language:
            yield text


def commands(script: str) -> Iterator[list[str]]:
    """The words behind each `hires` of a shell script."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not OPERATORS.fullmatch(word):
                words.append(word)
                continue
            if words[:1] == ["hires"]:
                yield words[1:]
            words = []


def leaf(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and the words after its name."""
    from hirescli.cli.app import app

    command: Any = get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def anchors(page: Path) -> set[str]:
    titles = HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{name(page)}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{name(page)}: no heading for {link}"


COMMANDS = [
    pytest.param(words, id=f"{name(page)}: {shlex.join(words)}")
    for page in PAGES
    for script in blocks(page, "sh")
    for words in commands(script)
]


def test_there_are_commands_to_try() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words: list[str]) -> None:
    command, rest = leaf(words)
    with command.make_context(command.name, list(rest)):
        pass  # an unknown option, a missing or a surplus word would have raised


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_a_sentence_exist(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for sentence in INLINE.findall(text):
        words = shlex.split(sentence)[1:]
        command, rest = leaf(words)
        known = {option for parameter in command.params for option in parameter.opts}
        known |= {o for parameter in command.params for o in parameter.secondary_opts}
        known |= {"--help", "-h", "--version"}
        for word in rest:
            if word.startswith("-") and word != "-":
                assert word.split("=")[0] in known, f"{name(page)}: {sentence}"
        assert command is not leaf([])[0] or not rest or rest[0].startswith("-"), sentence


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_examples_compile(page: Path) -> None:
    for number, code in enumerate(blocks(page, "python")):
        compile(code, f"{name(page)}[{number}]", "exec")


def test_python_examples_use_what_there_is() -> None:
    import hirescli

    for page in PAGES:
        for code in blocks(page, "python"):
            for attribute in re.findall(r"hirescli\.(\w+)", code):
                assert hasattr(hirescli, attribute), f"{name(page)}: hirescli.{attribute}"


def test_the_fields_of_a_recipe_are_described() -> None:
    from hirescli.recipe import CONSEQUENCES, Recipe

    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    missing = [key for key in set(Recipe.model_fields) - CONSEQUENCES if f"`{key}`" not in page]
    assert missing == []


@pytest.mark.slow
def test_the_python_example_makes_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "docs" / "python.md", "python")
    exec(compile(code, "docs/python.md", "exec"), {})
    assert (tmp_path / "dunes.png").stat().st_size > 0
    assert "RunDone" in capsys.readouterr().out


def test_a_wrong_command_would_be_found() -> None:
    """The net has no holes: the same way finds a bad option and a missing word."""
    for words in (["generate", "--sise", "64"], ["info"], ["presets", "show"]):
        command, rest = leaf(words)
        with pytest.raises(Exception, match=r"(?i)no such option|missing"):
            command.make_context(command.name, list(rest))
