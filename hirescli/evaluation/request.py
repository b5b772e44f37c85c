"""What to measure of bands and decoders, resolved from options. No torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hirescli.errors import RequestError
from hirescli.units import parse_bytes, parse_size

if TYPE_CHECKING:
    from hirescli.evaluation.case import Case

SIZE = "1024"
REPEAT = 3
DTYPE = "float32"
DTYPES = ("float32", "bfloat16")
PX_PER_LATENT = 8
_NOISY_CORES = 0.25  # from so many busy cores on, the page warns


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        sizes_px: Width and height of each size, multiples of 8.
        rows: Band heights in latent rows; None: as the engine chooses.
        repeat: Calls of each kind.
        dtype: One of `DTYPES`.
        threads: That are computed with.
        memory_bytes: Budget of the banded calls; None: the engine's default.
        folder: Of an AutoencoderKL; None: random weights.
        words: The options as they were written, for the page.
        busy_cores: That other programs keep busy.
    """

    sizes_px: tuple[tuple[int, int], ...]
    rows: tuple[int | None, ...]
    repeat: int
    dtype: str
    threads: int
    memory_bytes: int | None
    folder: Path | None
    words: str
    busy_cores: float

    @classmethod
    def of(cls, asked: dict[str, Any]) -> Request:
        """From options by their names; what is missing gets its default.

        Raises:
            RequestError: If a value makes no sense.
        """
        from hirescli.evaluation.page import busy_cores
        from hirescli.planning.machine import Machine

        memory = asked.get("memory")
        return cls(
            sizes_px=tuple(_parsed(size) for size in asked.get("size", [SIZE])),
            rows=tuple(asked.get("rows", [None])),
            repeat=asked.get("repeat", REPEAT),
            dtype=_checked_dtype(asked.get("dtype", DTYPE)),
            threads=asked.get("threads", Machine.detect().cores),
            memory_bytes=None if memory is None else parse_bytes(memory),
            folder=asked.get("model"),
            words=_words(asked),
            busy_cores=busy_cores(),
        )

    def case(self, component: str, size_px: tuple[int, int]) -> Case:
        """The plain call of a component at a size; `rows` is for the other ways."""
        from hirescli.evaluation.case import Case

        width_px, height_px = size_px
        return Case(
            component=component,
            way="plain",
            latents=(height_px // PX_PER_LATENT, width_px // PX_PER_LATENT),
            dtype=self.dtype,
            threads=self.threads,
            memory_bytes=self.memory_bytes,
            rows=self.rows[0],
            folder=None if self.folder is None else str(self.folder),
        )

    def told(self, more: str) -> str:
        """A paragraph on date, machine, how it was computed, and how busy the machine was."""
        from hirescli.evaluation.page import machine

        noisy = "; times are noisy" if self.busy_cores >= _NOISY_CORES else ""
        return (
            f"{date.today().isoformat()}. Machine: {machine()}.\n"
            f"Computed in {self.dtype} with {self.threads} threads. {more}\n"
            f"Other programs kept {self.busy_cores:.1f} cores busy when it began{noisy}."
        )

    def facts(self) -> dict[str, Any]:
        """The same for JSON."""
        from hirescli.evaluation.page import machine

        return {
            "machine": machine(),
            "busy_cores": self.busy_cores,
            "dtype": self.dtype,
            "threads": self.threads,
            "memory_bytes": self.memory_bytes,
        }


def _parsed(size: str) -> tuple[int, int]:
    width_px, height_px = parse_size(size)
    if width_px % PX_PER_LATENT or height_px % PX_PER_LATENT:
        raise RequestError(f"size {size} has a side that is no multiple of 8 px, one latent")
    return width_px, height_px


def _checked_dtype(dtype: str) -> str:
    if dtype not in DTYPES:
        raise RequestError(f'dtype "{dtype}" is none of {", ".join(DTYPES)}')
    return dtype


def _words(asked: dict[str, Any]) -> str:
    pairs = [
        (key, each)
        for key, value in asked.items()
        for each in (value if isinstance(value, list) else [value])
    ]
    return "".join(f" --{key} {shlex.quote(str(each))}" for key, each in pairs)
