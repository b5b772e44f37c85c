"""Folders of pictures with captions: listed and checked before anything heavy is loaded. No torch.

Captions are looked for in this order: ``metadata.jsonl`` (an object a line, with ``file_name``
and ``text`` or ``caption``), ``captions.csv`` (columns of these names), and ``NAME.txt`` beside
each picture.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hirescli.errors import RequestError
from hirescli.output.pictures import look
from hirescli.output.reading import SUFFIXES

METADATA, TABLE = "metadata.jsonl", "captions.csv"
_NAME, _TEXTS = "file_name", ("text", "caption")
_SHOWN = 5


@dataclass(frozen=True)
class Captioned:
    """One picture with what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Listed:
    """A folder's pictures.

    Attributes:
        pictures: Those that can be used, sorted by path.
        left_out: Why others cannot, a sentence for each; only where they may be left out.
    """

    pictures: tuple[Captioned, ...]
    left_out: tuple[str, ...]

    def digest(self, folder: Path) -> str:
        """Tells this list from others: names, captions and sizes of files."""
        return digest_of(
            json.dumps(
                [each.path.relative_to(folder).as_posix(), each.caption, each.path.stat().st_size]
            )
            for each in self.pictures
        )


def digest_of(lines: Iterable[str]) -> str:
    """Tells lists of texts apart: 16 hexadecimal digits."""
    made = hashlib.sha256()
    for line in lines:
        made.update(line.encode() + b"\n")
    return made.hexdigest()[:16]


def list_pictures(folder: Path, *, least_px: int, skip_broken: bool) -> Listed:
    """The pictures of a folder and those below it, their headers read, with their captions.

    Args:
        folder: With pictures of the kinds `SUFFIXES`.
        least_px: The least that a picture's shorter side may have.
        skip_broken: Leave out what is damaged, too small or has no caption.

    Raises:
        RequestError: If there are no pictures or none that can be used; if a file of captions is
            wrong; without `skip_broken`, if any picture cannot be used: the first are named.
    """
    if not folder.is_dir():
        raise RequestError(f"folder {folder} does not exist; name one with pictures and captions")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise RequestError(
            f"folder {folder} holds no pictures ({', '.join(SUFFIXES)}); name one that does"
        )
    captions = _captions(folder, paths)
    pictures: list[Captioned] = []
    faults: list[str] = []
    for path in paths:
        fault = _fault(path, captions.get(path), least_px)
        if fault is None:
            pictures.append(Captioned(path, captions[path]))
        else:
            faults.append(fault)
    if faults and (not skip_broken or not pictures):
        raise broken(folder, faults, of=len(paths), all_of_them=not pictures)
    return Listed(tuple(pictures), tuple(faults))


def broken(
    folder: Path, faults: Sequence[str], *, of: int, all_of_them: bool = False
) -> RequestError:
    """The error that names the first pictures that cannot be used."""
    listed = [f"  - {fault}" for fault in faults[:_SHOWN]]
    if len(faults) > _SHOWN:
        listed.append(f"  - and {len(faults) - _SHOWN} more")
    remedy = "mend them" if all_of_them else "mend them, or leave them out with --skip-broken"
    return RequestError(
        f"{len(faults)} of {of} pictures in {folder} cannot be used; {remedy}:\n"
        + "\n".join(listed)
    )


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line; empty lines are left out.

    Raises:
        RequestError: If it is no text file, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"prompts {path} cannot be read ({error}); give a text file, a prompt a line"
        ) from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise RequestError(f"{path} holds no prompts; write one a line")
    return prompts


def _fault(path: Path, caption: str | None, least_px: int) -> str | None:
    """Why a picture cannot be used."""
    if not caption:
        return f"{path} has no caption"
    try:
        facts = look(path)
    except RequestError as error:
        return str(error)
    if min(facts.width_px, facts.height_px) < least_px:
        return (
            f"{path} is {facts.width_px}x{facts.height_px} px, and the shorter side must have "
            f"{least_px} px (--resolution)"
        )
    return None


def _captions(folder: Path, paths: Sequence[Path]) -> dict[Path, str]:
    for name, read in ((METADATA, _lines), (TABLE, _rows)):
        if (folder / name).exists():
            return dict(_named(folder, name, read(folder / name)))
    found = {path: _beside(path) for path in paths if path.with_suffix(".txt").exists()}
    if not found:
        raise RequestError(
            f"the pictures in {folder} have no captions: write them to NAME.txt beside each "
            f"NAME.jpg, to {METADATA} or to {TABLE}"
        )
    return found


def _beside(path: Path) -> str:
    file = path.with_suffix(".txt")
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"caption {file} is no text in UTF-8; save it as that") from error


def _named(
    folder: Path, name: str, rows: Iterator[tuple[int, object, object]]
) -> Iterator[tuple[Path, str]]:
    """Pictures with captions from a file of them, checked; other entries are refused by line."""
    for line, file_name, text in rows:
        where = f"{folder / name}, line {line}"
        if not isinstance(file_name, str) or not isinstance(text, str):
            raise RequestError(f"{where}: it needs {_NAME} and {' or '.join(_TEXTS)}, both text")
        path = folder / file_name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise RequestError(f"{where}: {file_name} is not in the folder")
        if not path.is_file():
            raise RequestError(f"{where}: {file_name} does not exist")
        yield path, " ".join(text.split())


def _lines(path: Path) -> Iterator[tuple[int, object, object]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as JSON lines: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            said = _object(f"{path}, line {number}", line)
            yield number, said.get(_NAME), _text(said)


def _object(where: str, line: str) -> dict[str, object]:
    try:
        said = json.loads(line)
    except ValueError as error:  # which counts lines of its own
        raise RequestError(f"{where}: cannot be read as JSON lines: {error}") from error
    return said if isinstance(said, dict) else {}


def _rows(path: Path) -> Iterator[tuple[int, object, object]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                yield reader.line_num, row.get(_NAME), _text(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path} cannot be read as a CSV table: {error}") from error


def _text(said: dict[str, object]) -> object:
    return next((said[key] for key in _TEXTS if said.get(key) is not None), None)
