"""The folder beside its output that a distillation works in. No torch.

OUTPUT.run/run.json     what tells the run from others
OUTPUT.run/state.pt     weights, optimiser, step
OUTPUT.run/cache/       latents and text states, with made-from.json
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hirescli.disk import alone, write_atomically
from hirescli.errors import RequestError
from hirescli.training.distill.settings import check_same

_MADE_FROM = "made-from.json"


@dataclass(frozen=True)
class Place:
    """The folder beside the output of one distillation."""

    output: Path

    @property
    def run(self) -> Path:
        """The folder that it works in."""
        return self.output.with_name(self.output.name + ".run")

    @property
    def state(self) -> Path:
        """The training state."""
        return self.run / "state.pt"

    @property
    def cache(self) -> Path:
        """Of samples."""
        return self.run / "cache"

    def check(self) -> None:
        """Refuse a place that cannot be written.

        Raises:
            RequestError: Saying what is there.
        """
        if self.output.name in ("", ".."):  # "." has no name
            raise RequestError(f"{self.output} is no new name; give one to --output")
        if not self.output.parent.is_dir():
            raise RequestError(f"folder {self.output.parent} does not exist; make it first")
        if not os.access(self.output.parent, os.W_OK):
            raise RequestError(f"folder {self.output.parent} cannot be written; name another")
        if self.run.exists() and not self.run.is_dir():
            raise RequestError(f"{self.run} is in the way; move it, or name another output")

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder beside the output, made if need be, for this process alone.

        Raises:
            BusyError: If another process has it.
        """
        self.run.mkdir(exist_ok=True)
        with alone(self.run / "lock", f"another process is making {self.output}; wait for it"):
            yield

    def take_up(self, identity: Mapping[str, Any], *, restart: bool) -> None:
        """Begin a run here, or go on with the one that is here.

        Raises:
            RequestError: If another run's state is here and `restart` is not given.
        """
        path = self.run / "run.json"
        if restart:
            self.state.unlink(missing_ok=True)
        elif path.exists() and self.state.exists():  # before the first there is nothing to lose
            check_same(_read(path), dict(identity), place=self.run)
        write_atomically(path, json.dumps(identity, indent=2))

    def prepare_cache(self, made_from: Mapping[str, Any]) -> None:
        """An empty cache, or the one that is here if it was made from the same."""
        path = self.cache / _MADE_FROM
        if self.cache.exists() and (not path.exists() or _read(path) != made_from):
            shutil.rmtree(self.cache)
        self.cache.mkdir(exist_ok=True)
        write_atomically(path, json.dumps(made_from, indent=2))


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} is damaged; give --restart to start over") from error
    return said if isinstance(said, dict) else {}
