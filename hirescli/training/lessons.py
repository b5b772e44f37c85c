"""What the denoiser is shown: lessons, latents of rendered pictures, and their text states.

A lesson says how large the pictures of a step are, how noisy, and how many of them were shrunk
and enlarged before. Latents of all pictures and states of all captions are made once and stay on
the device, so that a step costs no more than picking among them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.models.builtin.autoencoder import FACTOR, ThinAutoencoder
from hirescli.models.builtin.text import TextEncoder
from hirescli.models.quiet import quiet_libraries
from hirescli.training.dataset import (
    KINDS,
    PICTURE_PX,
    Pictures,
    finished_shards,
    load_shard,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMESTEPS = 1000
SUFFIX = {"wide": "", "crop": ", close view", "close": "", "detail": ""}
_CHUNK = 32  # pictures that are encoded at a time


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One kind of training step: what pictures, at which size, under how much noise.

    Attributes:
        latent_px: Rows and columns of the latents, at most those of the rendered pictures.
        batch: Pictures in a step.
        timesteps: From the first, up to but without the last.
        degraded_share: Of the pictures, how many are shrunk and enlarged before the noise.
        near_share: Of the pictures, how many are near views.
    """

    latent_px: int
    batch: int
    timesteps: tuple[int, int] = (0, TIMESTEPS)
    degraded_share: float = 0.0
    near_share: float = 0.0


COMPOSITION = Lesson(latent_px=8, batch=128)
DOUBLING = Lesson(latent_px=16, batch=32, timesteps=(20, 850), degraded_share=0.8)
DETAIL = Lesson(latent_px=32, batch=12, timesteps=(20, 650), degraded_share=0.8, near_share=0.6)
# Half of the steps learn what the base stage draws; the others cost about as much time each.
LESSONS = (
    COMPOSITION, DOUBLING, COMPOSITION, DETAIL, COMPOSITION, DOUBLING, COMPOSITION, DETAIL,
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """One step's pictures.

    Attributes:
        x_0: Clean latents (B, C, h, w), float32.
        begun: What the noise is added to: as `x_0`, degraded or not.
        text: States (B, tokens, channels), float32.
        timesteps: (B,), from 0 to `TIMESTEPS` - 1.
    """

    x_0: Tensor
    begun: Tensor
    text: Tensor
    timesteps: Tensor


def degrade(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) shrunk and enlarged by two, as a doubling sees them."""
    small = F.avg_pool2d(x, 2)
    return F.interpolate(small, scale_factor=2.0, mode="bicubic").clamp(-1, 1)


class LatentShards:
    """Latents of every rendered picture at each size and kind that lessons read.

    Attributes:
        clean: By kind and latent size: (N, C, h, w) in half precision.
        degraded: The same of pictures that were shrunk and enlarged, where a lesson wants them.
        captions: By kind: those of each picture.
    """

    def __init__(
        self,
        folder: Path,
        autoencoder: ThinAutoencoder,
        lessons: Sequence[Lesson],
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder, self.lessons, self.device = folder, lessons, torch.device(device)
        self.encoder = autoencoder.encoder.to(self.device)
        self.seen: set[Path] = set()
        self.clean: dict[tuple[str, int], Tensor] = {}
        self.degraded: dict[tuple[str, int], Tensor] = {}
        self.captions: dict[str, list[list[str]]] = {kind: [] for kind in KINDS}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take up shards that were not there before."""
        finished_shards(self.folder, ["wide"])  # without these there is nothing for a base
        new = [path for path in finished_shards(self.folder) if path not in self.seen]
        made: dict[tuple[str, int, bool], list[Tensor]] = defaultdict(list)
        for path in new:
            kind = path.name.split("-")[0]
            pictures, captions = load_shard(path)
            self.captions[kind] += [[c + SUFFIX[kind] for c in texts] for texts in captions]
            for latent_px, bad in self._wanted(kind):
                made[kind, latent_px, bad] += self._latents(pictures, latent_px, bad)
        for (kind, latent_px, bad), latents in made.items():
            held = self.degraded if bad else self.clean
            before = held.pop((kind, latent_px), None)
            held[kind, latent_px] = torch.cat(latents if before is None else [before, *latents])
        self.seen.update(new)

    def near_kinds(self) -> list[str]:
        """The kinds of near views that are there."""
        return [kind for kind in KINDS if kind != "wide" and self.captions[kind]]

    def _wanted(self, kind: str) -> set[tuple[int, bool]]:
        lessons = [each for each in self.lessons if kind == "wide" or each.near_share]
        degraded = [each for each in lessons if each.degraded_share]
        return {(e.latent_px, False) for e in lessons} | {(e.latent_px, True) for e in degraded}

    def _latents(self, pictures: Pictures, latent_px: int, bad: bool) -> list[Tensor]:
        made = []
        for chunk in np.array_split(pictures, -(-len(pictures) // _CHUNK)):
            # A copy: the shard is mapped read-only, and torch knows no such tensors.
            x = torch.from_numpy(np.array(chunk)).to(self.device).permute(0, 3, 1, 2)
            x = F.avg_pool2d(x.float() / 127.5 - 1.0, PICTURE_PX // (FACTOR * latent_px))
            made.append(self.encoder(degrade(x) if bad else x).half())
        return made


class TextTable:
    """Text states of captions, each computed once, in half precision on the device."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        with quiet_libraries():
            self.encoder = TextEncoder.load()
        self.device = torch.device(device)
        self.rows: dict[str, int] = {}
        self.states: Tensor | None = None  # (captions, tokens, channels)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """States (B, 48, 384), float32."""
        new = sorted({caption for caption in captions if caption not in self.rows})
        if new:
            made = self.encoder.encode(new).half().to(self.device)
            self.states = made if self.states is None else torch.cat([self.states, made])
            self.rows.update({caption: len(self.rows) + i for i, caption in enumerate(new)})
        assert self.states is not None, "no captions were asked for"
        rows = torch.tensor([self.rows[caption] for caption in captions], device=self.device)
        return self.states[rows].float()


class Sampler:
    """Draws training batches from latents and captions.

    Args:
        shards: The pictures.
        text: The states of their captions.
        caption_dropout: How many captions are left empty, which guidance needs.
        seed: Of what is drawn.
    """

    def __init__(
        self, shards: LatentShards, text: TextTable, *, caption_dropout: float, seed: int
    ) -> None:
        self.shards, self.text, self.caption_dropout = shards, text, caption_dropout
        self.random = np.random.default_rng(seed)

    def batch(self, lesson: Lesson, count: int) -> Batch:
        """``count`` pictures of a lesson, in no order that means anything."""
        clean, begun, captions = [], [], []
        for kind, share in self._kinds(lesson, count):
            good, drawn, texts = self._of(kind, lesson, share)
            clean.append(good)
            begun.append(drawn)
            captions += texts
        timesteps = torch.randint(*lesson.timesteps, (count,), device=self.shards.device)
        return Batch(torch.cat(clean), torch.cat(begun), self.text(captions), timesteps)

    def _kinds(self, lesson: Lesson, count: int) -> list[tuple[str, int]]:
        """How many pictures of which kinds, none of zero."""
        near = self.shards.near_kinds()
        share = lesson.near_share if near else 0.0
        counts = self.random.multinomial(count, [1 - share, *[share / len(near) for _ in near]])
        kinds = zip(("wide", *near), counts.tolist(), strict=True)
        return [(kind, n) for kind, n in kinds if n]

    def _of(self, kind: str, lesson: Lesson, count: int) -> tuple[Tensor, Tensor, list[str]]:
        held = self.shards.clean[kind, lesson.latent_px]
        numbers = self.random.integers(len(held), size=count)
        rows = torch.from_numpy(numbers).to(held.device)
        clean = held[rows].float()
        begun = clean
        if lesson.degraded_share:
            bad = torch.from_numpy(self.random.random(count) < lesson.degraded_share)
            degraded = self.shards.degraded[kind, lesson.latent_px][rows].float()
            begun = torch.where(bad.to(held.device).view(-1, 1, 1, 1), degraded, clean)
        return clean, begun, [self._caption(kind, int(number)) for number in numbers]

    def _caption(self, kind: str, number: int) -> str:
        if self.random.random() < self.caption_dropout:
            return ""
        texts = self.shards.captions[kind][number]
        return texts[self.random.integers(len(texts))]
