"""Every command has --json, and what it prints then is JSON and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from hirescli.cli.app import app


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if not children:
        yield path.strip(), command
    for name, child in children.items():
        yield from leaves(child, f"{path} {name}")


# Those that serve until they are stopped print where; they have --json as well.
COMMANDS = dict(leaves(get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name: str) -> None:
    (option,) = [each for each in COMMANDS[name].params if "--json" in each.opts]
    assert option.is_flag
    assert option.help


CHEAP = {
    "generate": "-p sea --size 512 --dry-run",
    "upscale": "a.png -p sea --size 256 --dry-run",
    "batch": "jobs.jsonl -o out --dry-run",
    "plan": "-p sea --size 512",
    "info": "recipe.json",
    "inspect": "a.png",
    "doctor": "",
    "models list": "",
    "models info": "builtin",
    "presets list": "",
    "presets show": "draft",
    "presets validate": "own.toml",
    "presets new": "new.toml --steps 7",
    "runs list": "",
    "runs clean": "--yes",
}


@pytest.fixture
def folder(hires: Callable) -> None:
    """What the cheap commands read."""
    Image.effect_noise((128, 128), 40).convert("RGB").save("a.png")
    Path("recipe.json").write_text('{"prompt": "sea", "width_px": 512, "height_px": 512}')
    Path("own.toml").write_text('description = "mine"\n[recipe]\nsteps = 5\n')
    Path("jobs.jsonl").write_text('{"prompt": "sea", "size": 512}\n')
    Path("out").mkdir()


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.usefixtures("folder")
def test_stdout_is_json(hires: Callable, name: str) -> None:
    ran = hires(*name.split(), *CHEAP[name].split(), "--json")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines
    for line in lines:
        assert isinstance(json.loads(line, parse_constant=_refused), dict | list)


def _refused(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_presets_validate_tells_faults_of_all_files(hires: Callable) -> None:
    Path("good.toml").write_text("[recipe]\nsteps = 5\n")
    Path("bad.toml").write_text("[recipe]\nsteps = 0\nstepz = 1\n")
    ran = hires("presets", "validate", "good.toml", "bad.toml", "--json")
    assert ran.code == 2
    good, bad = json.loads(ran.out)
    assert (good["file"], good["faults"]) == ("good.toml", [])
    assert bad["valid"] is False
    assert len(bad["faults"]) == 2


def test_presets_new_tells_file_and_choices(hires: Callable) -> None:
    told = json.loads(hires("presets", "new", "own.toml", "--steps", 7, "--json").out)
    assert told == {"file": "own.toml", "steps": 7}


def test_renders_are_told_as_lines(hires: Callable) -> None:
    words = ["--wide", 0, "--crop", 0, "--close", 0, "--detail", 0]
    assert hires("train", "render", "shards", *words, "--json").out == ""
