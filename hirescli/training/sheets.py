"""Sample sheets: what a training has learned so far, as a PNG beside its state.

Legend: N pictures, C latent channels, h and w latent rows and columns, H and W pixels.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hirescli.errors import RunError

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    from hirescli.models.builtin.autoencoder import ThinAutoencoder

PROMPTS = (
    "snowy mountains above a lake at sunset",
    "golden sand dunes at dawn",
    "a red rock canyon at sunset",
    "rolling green hills by day",
    "a pine forest at dawn, mist between the trees",
    "green aurora over mountains at night",
    "the sea in a storm, white foam",
    "a sky with clouds at sunset",
    "a purple nebula with stars",
    "a spiral galaxy, seen from above",
    "a planet with a ring, lit from the left",
    "polished blue agate stone",
)
COLUMNS = 4
BASE_STEPS, STEPS = 20, 6
BASE_GUIDANCE, GUIDANCE, STRENGTH = 5.0, 4.0, 0.5


@dataclass(frozen=True)
class Samples:
    """Samples of `PROMPTS`, a base stage and a doubling in small, always from the same noise.

    Attributes:
        unet: v-prediction on latents (N, C, h, w) with text states.
        autoencoder: Of these latents.
        scheduler: Its timesteps are set here.
        text: States of `PROMPTS` (N, tokens, channels).
        empty: States of the empty prompt (1, tokens, channels), for guidance.
    """

    unet: UNet2DConditionModel
    autoencoder: ThinAutoencoder
    scheduler: DDIMScheduler
    text: Tensor
    empty: Tensor

    @torch.no_grad()
    def draw(self) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1], twice as large as the base."""
        random = torch.Generator().manual_seed(0)
        base = self._denoised(self._noise(1, random), BASE_STEPS, guidance=BASE_GUIDANCE)
        larger = F.interpolate(self._decoded(base), scale_factor=2.0, mode="bicubic").clamp(-1, 1)
        x_0, noise = self.autoencoder.encoder(larger), self._noise(2, random)
        return self._decoded(self._denoised(noise, STEPS, x_0=x_0, guidance=GUIDANCE))

    def _noise(self, scale: int, random: torch.Generator) -> Tensor:
        side = scale * self.unet.config["sample_size"]
        shape = (len(self.text), self.unet.config["in_channels"], side, side)
        return torch.randn(shape, generator=random).to(self.text.device)

    def _decoded(self, z: Tensor) -> Tensor:
        pictures: Tensor = self.autoencoder.decode(z, return_dict=False)[0]
        return pictures.clamp(-1, 1)

    def _denoised(
        self, noise: Tensor, steps: int, *, guidance: float, x_0: Tensor | None = None
    ) -> Tensor:
        """From pure noise, or from `x_0` under as much of it as `STRENGTH` says."""
        self.scheduler.set_timesteps(steps if x_0 is None else math.ceil(steps / STRENGTH))
        timesteps = self.scheduler.timesteps[-steps:]
        x_t = noise if x_0 is None else self.scheduler.add_noise(x_0, noise, timesteps[:1])  # type: ignore[arg-type]
        for t in timesteps:
            v = self._v(x_t, t, guidance)
            x_t = self.scheduler.step(v, t, x_t, return_dict=False)[0]
        return x_t

    def _v(self, x_t: Tensor, t: Tensor, guidance: float) -> Tensor:
        with torch.autocast(x_t.device.type, torch.bfloat16):
            v: Tensor = self.unet(x_t, t, self.text).sample.float()
            free: Tensor = self.unet(x_t, t, self.empty.expand_as(self.text)).sample.float()
        return free + guidance * (v - free)


def write_sheet(path: Path, pictures: Tensor) -> None:
    """Write pictures (N, 3, H, W) in [-1, 1] as one PNG, `COLUMNS` in a row.

    Raises:
        RunError: If it cannot be written.
    """
    tiles = ((pictures.float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    blank = -len(tiles) % COLUMNS
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, 0, 0, blank)).unflatten(0, (-1, COLUMNS))
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    partial = path.with_name(path.name + ".partial")
    try:
        Image.fromarray(sheet.contiguous().numpy()).save(partial, format="PNG")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write sample sheet {path}: {error.strerror or error}") from error
