"""Latents and text states on disk: a file for each sample, made once, whole or not at all.

``00000012.safetensors`` holds `latents` (C, h, w), `text` (tokens, channels) and, of SDXL, FLUX
and SD3, `pooled` (channels), in half precision but for the latents; ``none.safetensors`` holds
the last two without a caption; ``00000012.broken`` says why a sample could not be made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hirescli.disk import write_atomically
from hirescli.errors import RequestError, RunError
from hirescli.training.distill.batches import (
    Batch,
    chance,
    generator_of,
    number_below,
    place_in_turn,
)
from hirescli.training.distill.schedule import drawn_noise

_NONE = "none"


@dataclass(frozen=True)
class Cache:
    """A folder of samples, numbered from 0."""

    folder: Path

    def path(self, number: int) -> Path:
        """The file of a sample."""
        return self.folder / f"{number:08d}.safetensors"

    def left_out_path(self, number: int) -> Path:
        """The file that says why there is no sample."""
        return self.folder / f"{number:08d}.broken"

    def missing(self, count: int) -> list[int]:
        """Samples that are neither made nor known to be broken."""
        there = {path.name for path in self.folder.glob("*.*")}
        wanted = [(self.path(n).name, self.left_out_path(n).name) for n in range(count)]
        return [n for n, names in enumerate(wanted) if there.isdisjoint(names)]

    def made(self, count: int) -> list[int]:
        """Samples that are there."""
        there = {path.name for path in self.folder.glob("*.safetensors")}
        return [n for n in range(count) if self.path(n).name in there]

    def faults(self, count: int) -> list[str]:
        """Why samples are not there."""
        paths = [self.left_out_path(n) for n in range(count)]
        return [path.read_text(encoding="utf-8") for path in paths if path.exists()]

    def write(self, number: int, latents: Tensor, text: Tensor, pooled: Tensor | None) -> None:
        """Write a sample."""
        _write(self.path(number), {"latents": latents.float(), **_states(text, pooled)})

    def leave_out(self, number: int, reason: str) -> None:
        """Remember that a sample cannot be made, and why."""
        write_atomically(self.left_out_path(number), reason)

    def try_again(self, count: int) -> None:
        """Forget which samples could not be made."""
        for number in range(count):
            self.left_out_path(number).unlink(missing_ok=True)

    @property
    def has_none(self) -> bool:
        """Whether the states without a caption are there."""
        return self._none.exists()

    def write_none(self, text: Tensor, pooled: Tensor | None) -> None:
        """Write the states without a caption."""
        _write(self._none, _states(text, pooled))

    def read(self, number: int | None) -> dict[str, Tensor]:
        """A sample in float32; None: states without a caption.

        Raises:
            RunError: If the file is damaged.
        """
        path = self._none if number is None else self.path(number)
        try:
            return {key: value.float() for key, value in load_file(path).items()}
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{path} is damaged ({error}); remove it, and the same command makes it again"
            ) from error

    @property
    def _none(self) -> Path:
        return self.folder / f"{_NONE}.safetensors"


@dataclass(frozen=True)
class CachedSamples:
    """Batches from a cache.

    Attributes:
        cache: Complete.
        numbers: Of the samples in it that are used.
        caption_dropout: Share of samples that are given no caption.
        timesteps: Of the model's noise schedule.
        seed: Of everything drawn.
        size: Samples of a whole batch.
    """

    cache: Cache
    numbers: Sequence[int]
    caption_dropout: float
    timesteps: int
    seed: int
    size: int

    def batch(self, step: int, items: Sequence[int]) -> Batch:
        """The samples at these places of a step's batch; all samples come in turn."""
        drawn = [self._sample(step, item) for item in items]
        columns = list(zip(*drawn, strict=True))
        x_0, noise, text = (torch.stack(columns[i]) for i in range(3))
        pooled = None if columns[3][0] is None else torch.stack(columns[3])
        return Batch(x_0, x_0, noise, torch.tensor(columns[4]), text, pooled)

    def _sample(self, step: int, item: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None, int]:
        generator = generator_of(self.seed, step, item)
        place = place_in_turn(step * self.size + item, len(self.numbers), self.seed)
        held = self.cache.read(self.numbers[place])
        latents = held["latents"]
        if chance(self.caption_dropout, generator):
            held = self.cache.read(None)
        timestep = number_below(self.timesteps, generator)
        noise = drawn_noise(tuple(latents.shape), generator)
        return latents, noise, held["text"], held.get("pooled"), timestep


def check_finite(latents: Tensor, what: str) -> None:
    """Refuse latents that are no numbers.

    Raises:
        RequestError: Naming what they are of.
    """
    if not bool(torch.isfinite(latents).all()):
        raise RequestError(f"{what} gives latents that are no numbers; leave it out")


def _states(text: Tensor, pooled: Tensor | None) -> dict[str, Tensor]:
    made = {"text": text.half().contiguous()}
    return made if pooled is None else made | {"pooled": pooled.half().contiguous()}


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error}") from error
