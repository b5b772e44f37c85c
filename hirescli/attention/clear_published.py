"""The CLEAR weights that its authors publish, and what they are called. No torch.

References:
    https://huggingface.co/Huage001/CLEAR
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REPOSITORY = "Huage001/CLEAR"
DEFAULT_WINDOW = 16
_NAME = re.compile(r"clear-(\d+)(?:-down-(\d+))?")
_FILE = re.compile(r"clear_local_(\d+)(?:_down_(\d+))?\.safetensors")


@dataclass(frozen=True, order=True)
class Variant:
    """One setting of CLEAR.

    Attributes:
        window: In tokens.
        down_factor: 1 where nothing is pooled.
    """

    window: int
    down_factor: int = 1

    @property
    def name(self) -> str:
        """What people call it, such as "clear-16-down-4"."""
        return f"clear-{self.window}" + (f"-down-{self.down_factor}" * (self.down_factor > 1))

    @property
    def file(self) -> str:
        """Its file, as published."""
        down = f"_down_{self.down_factor}" * (self.down_factor > 1)
        return f"clear_local_{self.window}{down}.safetensors"


PUBLISHED = (Variant(8), Variant(16), Variant(32), Variant(8, 4), Variant(16, 4))


def published(name: str) -> Variant | None:
    """The variant of a name such as "clear-16", if it is one of those published."""
    found = _of(_NAME, name)
    return found if found in PUBLISHED and found.name == name else None


def of_file(file_name: str) -> Variant | None:
    """What a file's name says it holds, if it is named as those published."""
    return _of(_FILE, file_name)


def _of(pattern: re.Pattern[str], text: str) -> Variant | None:
    match = pattern.fullmatch(text)
    return None if match is None else Variant(int(match[1]), int(match[2] or 1))


def listed() -> str:
    """All names, for messages."""
    return ", ".join(each.name for each in sorted(PUBLISHED))
