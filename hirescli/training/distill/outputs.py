"""What a distillation writes at its end: a folder (LinFusion) or a file (CLEAR). No torch.

Either says how it was made: the folder in ``distillation.json``, the file in its metadata.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hirescli.disk import sync_folder
from hirescli.errors import RequestError
from hirescli.models.safetensors_check import read_tensors

ABOUT = "distillation.json"
ABOUT_KEY = "distillation"  # in a file's metadata


class Output(Protocol):
    """An adapter that is there, or will be."""

    @property
    def path(self) -> Path:
        """Where."""

    def about(self) -> dict[str, Any] | None:
        """What it says of the run that made it; None: it is not there, or no distillation's."""

    def check(self, *, overwrite: bool) -> None:
        """Refuse a place where something else is.

        Raises:
            RequestError: Saying what is there.
        """


@dataclass(frozen=True)
class AdapterFolder:
    """A folder, which holds nothing else."""

    path: Path

    def about(self) -> dict[str, Any] | None:
        """As of `Output`."""
        try:
            return _said(Path(self.path / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def check(self, *, overwrite: bool) -> None:
        """As of `Output`."""
        folder = self.path.is_dir()
        if self.path.exists() and self.about() is None and not (overwrite and folder):
            remedy = "name another folder" + (", or give --overwrite" if folder else "")
            raise RequestError(f"{self.path} exists and is no distillation's output; {remedy}")

    @contextmanager
    def filled(self, aside: Path, about: Mapping[str, Any]) -> Iterator[Path]:
        """A folder to fill; it gets the output's name once the context has ended.

        Args:
            aside: Where one that is there rests meanwhile: on the same disk.
            about: What it says of the run.
        """
        partial = self.path.with_name(self.path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            sync_folder(partial)
            if self.path.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self.path, aside)  # a folder cannot be put in place of another
                os.replace(partial, self.path)
                shutil.rmtree(aside)
            else:
                os.replace(partial, self.path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@dataclass(frozen=True)
class AdapterFile:
    """A safetensors file; `filled` by what writes such files."""

    path: Path

    def about(self) -> dict[str, Any] | None:
        """As of `Output`."""
        if not self.path.is_file():
            return None
        try:
            return _said(str(read_tensors(self.path).metadata.get(ABOUT_KEY, "")))
        except ValueError:  # damaged, or it says nothing
            return None

    def check(self, *, overwrite: bool) -> None:
        """As of `Output`; also that the name says what it is."""
        if self.path.suffix != ".safetensors":
            raise RequestError(
                f"{self.path} does not end in .safetensors, which the weights of CLEAR are; "
                f"give {self.path.name}.safetensors"
            )
        file = self.path.is_file()
        if self.path.exists() and self.about() is None and not (overwrite and file):
            remedy = "name another file" + (", or give --overwrite" if file else "")
            raise RequestError(f"{self.path} exists and is no distillation's output; {remedy}")


def _said(text: str) -> dict[str, Any] | None:
    said = json.loads(text)
    return said if isinstance(said, dict) else None
