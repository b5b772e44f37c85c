"""Presets: partial recipes in TOML, shipped or written by a user.

A file holds a `description` and a table `[recipe]` with any choices of a recipe.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.errors import ConfigError, RequestError
from hirescli.recipe import fragment_faults

_IN_WHEEL = Path(__file__).parent / "presets_data"
_IN_SOURCE = Path(__file__).parent.parent / "presets"
_SUFFIX = ".toml"
_KEY = re.compile(r"\s*(?:\"([^\"]+)\"|'([^']+)'|([A-Za-z0-9_-]+))\s*=")
_TABLE = re.compile(r"\s*\[([^\[\]]+)\]")
_LINE = re.compile(r" \(at line (\d+), column \d+\)$")
_KNOWN = ("description", "recipe")


@dataclass(frozen=True)
class Preset:
    """A partial recipe with a name and a line that says what it is for."""

    name: str
    description: str
    fragment: dict[str, Any]


def names() -> list[str]:
    """The names of the shipped presets, sorted."""
    return sorted(path.stem for path in _folder().glob(f"*{_SUFFIX}"))


def load(name_or_path: str | Path) -> Preset:
    """Read a shipped preset by its name, or a user's by its path.

    Args:
        name_or_path: Without a folder and without ".toml" it is a name.

    Raises:
        RequestError: If no preset has this name.
        ConfigError: If the file is missing or faulty; all faults together.
    """
    text = str(name_or_path)
    if not text:
        raise RequestError(f'preset "" is empty; shipped are {", ".join(names())}')
    is_path = text.endswith(_SUFFIX) or len(Path(text).parts) != 1
    if not is_path and text not in names():
        close = difflib.get_close_matches(text, names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise RequestError(
            f'preset "{text}" is unknown; {hint}shipped are {", ".join(names())}; '
            "a file of your own is given by its path with .toml"
        )
    path = Path(text) if is_path else _folder() / f"{text}{_SUFFIX}"
    data, faults = _read(path)
    if faults:
        raise ConfigError(str(path), faults)
    return Preset(path.stem, data.get("description", ""), data.get("recipe", {}))


def validate(path: Path) -> list[str]:
    """All faults of a preset file, each with its line or key; empty if it is good."""
    return _read(path)[1]


def new(path: Path, fragment: Mapping[str, Any], *, description: str = "") -> None:
    """Write a preset.

    Args:
        path: Where; ends in ".toml" and does not exist.
        fragment: Choices of a recipe; None is left out.
        description: One line that says what the preset is for.

    Raises:
        RequestError: If the path does not work.
        ConfigError: If the choices are wrong.
    """
    if path.suffix != _SUFFIX:
        raise RequestError(f"preset {path} must end in {_SUFFIX}; name it {path.name}{_SUFFIX}")
    choices = {key: value for key, value in fragment.items() if value is not None}
    faults = [f"{key}: {message}" for key, message in fragment_faults(choices)]
    if faults:
        raise ConfigError(str(path), faults)
    lines = [f"description = {_toml(description)}", "", "[recipe]"]
    lines += [f"{key} = {_toml(value)}" for key, value in choices.items()]
    _write_new(path, "\n".join(lines) + "\n")


def _folder() -> Path:
    """The shipped presets: beside the code in the wheel, at the top level in a source tree."""
    return _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_SOURCE


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What the file says, and all its faults; what follows a fault is still looked at."""
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return {}, [f"cannot be read: {reason}; `hires presets list` shows the shipped ones"]
    text, faults = _text(raw)
    data, syntax_faults = _parse(text)
    faults += syntax_faults
    if data is not None:
        faults += _content_faults(data, text)
    return data or {}, faults


def _text(raw: bytes) -> tuple[str, list[str]]:
    """The text with what is no text in it made harmless, and a fault for each such line."""
    faults = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if b"\0" in line:
            faults.append(f"line {number}: holds a NUL byte; remove it")
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            faults.append(f"line {number}: is not valid UTF-8; save the file as UTF-8")
    text = raw.decode("utf-8", errors="replace").replace("\0", " ")
    return text.removeprefix("\ufeff"), faults


def _parse(text: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Parse TOML. Doubled keys are found first, so that one does not hide what follows."""
    try:
        return tomllib.loads(text), []
    except (ValueError, RecursionError):  # TOMLDecodeError, or a number of thousands of digits
        kept, faults = _without_doubled_keys(text)
    try:
        return tomllib.loads(kept), faults
    except (ValueError, RecursionError) as error:
        at = _LINE.search(str(error))
        message = _LINE.sub("", str(error))
        return None, [*faults, f"line {at[1]}: {message}" if at else message]


def _without_doubled_keys(text: str) -> tuple[str, list[str]]:
    table, seen, faults = "", dict[tuple[str, str], int](), []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if header := _TABLE.match(line):
            table = header[1].strip()
        key = _key_of(line)
        if key is None:
            continue
        if (table, key) in seen:
            first = seen[table, key]
            faults.append(f"line {number}: {key} stands already on line {first}; keep one")
            lines[number - 1] = ""
        seen.setdefault((table, key), number)
    return "\n".join(lines), faults


def _content_faults(data: Mapping[str, Any], text: str) -> list[str]:
    faults = [
        f"{_at(key, text)}{key}: is unknown; a preset holds description and [recipe]"
        for key in data
        if key not in _KNOWN
    ]
    if not isinstance(data.get("description", ""), str):
        faults.append(f"{_at('description', text)}description: must be text")
    fragment = data.get("recipe", {})
    if not isinstance(fragment, dict):
        return [*faults, f"{_at('recipe', text)}recipe: must be a table, [recipe]"]
    return faults + [
        f"{_at(key.split('.')[0], text)}recipe.{key}: {message}"
        for key, message in fragment_faults(fragment)
    ]


def _at(key: str, text: str) -> str:
    for number, line in enumerate(text.split("\n"), start=1):
        if _key_of(line) == key:
            return f"line {number}, "
    return ""


def _key_of(line: str) -> str | None:
    match = _KEY.match(line)
    return next(filter(None, match.groups()), None) if match else None


def _toml(value: object) -> str:
    """One value as TOML. JSON's text, numbers, booleans and lists of numbers are TOML as well."""
    if isinstance(value, str):
        # JSON leaves DEL as it is, TOML does not allow it.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _write_new(path: Path, text: str) -> None:
    """Write a file that must not exist, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        try:
            os.link(partial, path)  # unlike a rename, it refuses to replace
        finally:
            partial.unlink()
    except FileExistsError as error:
        raise RequestError(f"preset {path} exists; choose another name") from error
    except OSError as error:
        raise RequestError(f"preset {path} cannot be written: {error.strerror}") from error
