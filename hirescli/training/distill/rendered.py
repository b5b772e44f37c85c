"""Batches of the built-in model's own pictures, as its teacher saw them in training.

Half of the steps see whole compositions at the base size, at all noise. The others see pictures
twice and four times as large at the noise of the doublings, near views among them, most of them
degraded: the student stands in for the teacher there, too. What a picture costs to encode is
next to nothing, so no latents are kept on the disk; text states are kept in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hirescli.errors import RequestError
from hirescli.training.dataset import KINDS, PICTURE_PX, Pictures, finished_shards, load_shard
from hirescli.training.distill.batches import Batch, chance, generator_of, number_below
from hirescli.training.distill.schedule import drawn_noise
from hirescli.training.distill.settings import DistillRun
from hirescli.training.distill.targets import Target
from hirescli.training.lessons import DETAIL, DOUBLING, SUFFIX, degrade


@dataclass(frozen=True)
class View:
    """One way of looking at the shards; all samples of a step share it.

    Attributes:
        side_px: Of the pictures, which are shrunk to it.
        share: Of the steps.
        near_share: Of samples that are no whole compositions; these stay at 256 px.
        degraded_share: Of samples that are shrunk and enlarged before noise is added.
        timesteps: The first, and the one after the last.
    """

    side_px: int
    share: float
    near_share: float
    degraded_share: float
    timesteps: tuple[int, int]


def views_of(native_px: int, timesteps: int) -> tuple[View, ...]:
    """The base size and what the first doublings see, as far as the shards are large enough.

    Raises:
        RequestError: If the base size does not divide the shards' pictures.
    """
    if native_px > PICTURE_PX or PICTURE_PX % native_px:
        raise RequestError(
            f"shards hold pictures of {PICTURE_PX} px, from which none of {native_px} px can be "
            f"made; give a --resolution that divides {PICTURE_PX}"
        )
    base = View(native_px, 0.5, 0.0, 0.0, (0, timesteps))
    if native_px == PICTURE_PX:
        return (View(native_px, 1.0, 0.0, 0.0, (0, timesteps)),)
    lessons = {2 * native_px: DOUBLING, 4 * native_px: DETAIL}
    sides = [side for side in lessons if side <= PICTURE_PX]
    share = 0.5 / len(sides)
    larger = [
        View(side, share, 0.5 if side == PICTURE_PX else 0.0, 0.7, lessons[side].timesteps)
        for side in sides
    ]
    return (base, *larger)


class RenderedSamples:
    """Batches from a folder of shards.

    Args:
        folder: From `hires train render`, some of kind wide among them.
        target: The built-in model, with its encoders.
        run: The settings.
        timesteps: Of the model's noise schedule.
        views: What is looked at; their shares add up to 1.

    Raises:
        RequestError: If there are no such shards.
    """

    def __init__(
        self,
        folder: Path,
        target: Target,
        run: DistillRun,
        *,
        timesteps: int,
        views: Sequence[View] | None = None,
    ) -> None:
        finished_shards(folder, ["wide"])  # without these there is nothing for a base
        self.target, self.run = target, run
        self.views = tuple(views or views_of(run.resolution_px, timesteps))
        self.shards: dict[str, list[tuple[Pictures, list[list[str]]]]] = {k: [] for k in KINDS}
        for path in finished_shards(folder):
            self.shards[path.name.split("-")[0]].append(load_shard(path))
        self.states: dict[str, Tensor] = {}

    def batch(self, step: int, items: Sequence[int]) -> Batch:
        """The samples at these places of a step's batch."""
        view = self._view(step)
        drawn = [self._picture(view, generator_of(self.run.seed, step, i)) for i in items]
        pictures = torch.stack([picture for picture, _, _ in drawn])
        clean = self.target.latents(pictures)
        begun = self.target.latents(degrade(pictures))
        degraded = torch.tensor([bad for _, _, bad in drawn]).view(-1, 1, 1, 1)
        text = self._states([caption for _, caption, _ in drawn])
        noise, timesteps = self._noise(view, step, items, tuple(clean.shape[1:]))
        return Batch(clean, torch.where(degraded, begun, clean), noise, timesteps, text)

    def _view(self, step: int) -> View:
        share = float(torch.rand(1, generator=generator_of(self.run.seed, step, self.run.batch)))
        for view in self.views:
            share -= view.share
            if share < 0:
                return view
        return self.views[0]

    def _picture(self, view: View, generator: torch.Generator) -> tuple[Tensor, str, bool]:
        """A picture (3, side, side) in [-1, 1], its caption, and whether it is to be degraded."""
        near = [kind for kind in KINDS if kind != "wide" and self.shards[kind]]
        kind = "wide"
        if near and chance(view.near_share, generator):
            kind = near[number_below(len(near), generator)]
        shards = self.shards[kind]
        pictures, captions = shards[number_below(len(shards), generator)]
        index = number_below(len(pictures), generator)
        texts = captions[index]
        caption = texts[number_below(len(texts), generator)] + SUFFIX[kind]
        if chance(self.run.caption_dropout, generator):
            caption = ""
        x = torch.from_numpy(np.array(pictures[index])).permute(2, 0, 1).float() / 127.5 - 1
        shrunk = F.avg_pool2d(x, PICTURE_PX // view.side_px) if view.side_px < PICTURE_PX else x
        return shrunk, caption, chance(view.degraded_share, generator)

    def _noise(
        self, view: View, step: int, items: Sequence[int], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        # Of a seed of its own, so that what is drawn before does not move it.
        generators = [generator_of(self.run.seed + 1, step, item) for item in items]
        first, end = view.timesteps
        timesteps = [first + number_below(end - first, each) for each in generators]
        noise = torch.stack([drawn_noise(shape, each) for each in generators])
        return noise, torch.tensor(timesteps)

    def _states(self, captions: Sequence[str]) -> Tensor:
        new = sorted({caption for caption in captions if caption not in self.states})
        if new:
            text, _ = self.target.states(new)
            self.states |= dict(zip(new, text.half(), strict=True))
        return torch.stack([self.states[caption] for caption in captions]).float()
