"""The stages of one image: each takes latents to latents through a diffusers pipeline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hirescli.cascade.methods import anchor_colours
from hirescli.cascade.pipelines import image_to_image, text_to_image
from hirescli.errors import RunError
from hirescli.events import Listener, RowsDecoded, RowsEncoded, StepDone
from hirescli.output.resize import resized_rows
from hirescli.output.spool import NotFiniteError, Spool, quantise
from hirescli.planning.cascade import schedule_steps
from hirescli.vae.rows import decode_rows, encode_rows

if TYPE_CHECKING:
    from pathlib import Path

    from hirescli.models.load import Model
    from hirescli.planning.cascade import Stage
    from hirescli.recipe import Recipe

Tensors = dict[str, Any]
# With noise of zero signal at the first step, plain guidance overshoots in contrast
# (https://arxiv.org/abs/2305.08891, section 3.4).
GUIDANCE_RESCALE = 0.5


@dataclass(frozen=True)
class Stages:
    """What every stage of one image is given.

    Attributes:
        model: The loaded modules.
        recipe: Resolved; `rows` is the band height in latent rows.
        noise: The one source of random numbers of the image, on the CPU, so that a seed means
            the same noise on every device.
        listener: Is told of steps and rows.
    """

    model: Model
    recipe: Recipe
    noise: torch.Generator
    listener: Listener

    def base(self, stage: Stage) -> Tensor:
        """Latents (1, C, h, w), float32, of the base picture, from noise."""
        pipeline = text_to_image(self.model)
        made = pipeline(
            **self._arguments(stage),
            height=stage.height_px,
            width=stage.width_px,
            num_inference_steps=stage.steps,
        ).images
        return self._checked(made, stage)

    def upscale(self, stage: Stage, encoded: Tensor) -> Tensor:
        """Latents (1, C, h, w), float32: `encoded` of the same shape, renoised and denoised."""
        assert stage.strength is not None
        pipeline = image_to_image(self.model)
        made = pipeline(
            **self._arguments(stage),
            image=encoded,
            strength=stage.strength,
            num_inference_steps=schedule_steps(stage.strength, stage.steps),
        ).images
        anchor = self.model.card.colour_anchor
        made = anchor_colours(made.float(), encoded, deviation=anchor == "moments")
        return self._checked(made, stage)

    def decode(self, latents: Tensor, stage: Stage, spool: Spool) -> None:
        """Decode latents into a writable spool of the stage's size, row by row."""
        for y, rows in decode_rows(self.model.autoencoder, latents, rows=self._rows):
            try:
                spool.write_rows(y, quantise(rows, spool.bits))
            except NotFiniteError as error:
                raise RunError(f"{self._named(stage)} gave {error}; {self._advice}") from error
            done = y + len(rows)
            self.listener(RowsDecoded(stage.index, done, stage.height_px))
        spool.flush()

    def encode(self, path: Path, stage: Stage) -> Tensor:
        """Latents (1, C, h, w), float32, of the spool at `path`, enlarged to the stage's size."""
        factor = self.model.card.vae_factor
        channels = self.model.card.latent_channels
        encoded = torch.empty(1, channels, stage.latent_height, stage.latent_width)
        width_px, height_px, rows = stage.width_px, stage.height_px, self._rows * factor
        with Spool.open(path) as spool:
            bands = resized_rows(spool, width_px=width_px, height_px=height_px, rows=rows)
            for row, latents in encode_rows(
                self.model.autoencoder, bands, width_px=width_px, height_px=height_px
            ):
                encoded[:, :, row : row + latents.shape[2]] = latents
                done = (row + latents.shape[2]) * factor
                self.listener(RowsEncoded(stage.index, done, stage.height_px))
        return encoded

    @property
    def _rows(self) -> int:
        assert self.recipe.rows is not None, "the recipe is not resolved"
        return self.recipe.rows

    def _arguments(self, stage: Stage) -> dict[str, Any]:
        """What both pipelines take. The prompt names the scale that the stage works at."""
        word = self.model.card.scale_word(max(stage.width_px, stage.height_px))
        dtype = self.model.unet.dtype
        texts = [self.model.text.scaled(self.recipe.prompt, word), self.recipe.negative_prompt]
        prompt, negative = self.model.text.encode(texts).to(dtype)
        return {
            "prompt_embeds": prompt[None],
            "negative_prompt_embeds": negative[None],
            "guidance_scale": stage.guidance_scale,
            "guidance_rescale": GUIDANCE_RESCALE,
            "generator": self.noise,
            "output_type": "latent",
            "callback_on_step_end": self._step_listener(stage),
        }

    def _step_listener(self, stage: Stage) -> Any:
        began = time.monotonic()

        def on_step_end(_: object, step: int, __: object, tensors: Tensors) -> Tensors:
            nonlocal began
            now = time.monotonic()
            self.listener(StepDone(stage.index, step + 1, stage.steps, now - began))
            began = now
            return tensors

        return on_step_end

    def _checked(self, latents: Tensor, stage: Stage) -> Tensor:
        if not bool(torch.isfinite(latents).all()):
            raise RunError(
                f"{self._named(stage)} gave latents that are not finite; {self._advice}"
            )
        return latents.float()

    def _named(self, stage: Stage) -> str:
        return f"stage {stage.index + 1} ({stage.width_px}x{stage.height_px} px)"

    @property
    def _advice(self) -> str:
        if self.recipe.dtype == "float32":
            return "try a lower --guidance-scale or another --seed"
        return "try --dtype float32 or a lower --guidance-scale"
