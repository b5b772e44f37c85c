"""The stages of one image: each takes latents to latents through a diffusers pipeline.

Latents never stand whole in memory where the plan keeps them on disk: the pipeline is given
banded tensors, its arithmetic between two denoiser calls is recorded, and after every step what
it holds is computed in bands and kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hirescli.bands.call import StreamedCall, replaced_forward
from hirescli.bands.engine import Engine, banded_tensor
from hirescli.bands.execute import NotFiniteError
from hirescli.bands.graph import parameter_names
from hirescli.bands.tensor import BandedTensor
from hirescli.cascade.methods import anchor_colours
from hirescli.cascade.noise import noise_like
from hirescli.cascade.pipelines import image_to_image, text_to_image
from hirescli.errors import RunError
from hirescli.events import Listener, RowsDecoded, RowsEncoded, StepDone, Warned
from hirescli.output import spool as spools
from hirescli.output.resize import Resized
from hirescli.output.spool import Spool, quantise
from hirescli.planning.cascade import schedule_steps
from hirescli.planning.cost import component_rows, stores_of
from hirescli.vae.rows import Rows, decode_rows, decode_tiled, encode_rows

if TYPE_CHECKING:
    from hirescli.models.load import Model
    from hirescli.planning.cascade import Stage
    from hirescli.planning.cost import StageCost
    from hirescli.planning.plan import Plan

Tensors = dict[str, Any]
# With noise of zero signal at the first step, plain guidance overshoots in contrast
# (https://arxiv.org/abs/2305.08891, section 3.4).
GUIDANCE_RESCALE = 0.5
_TILED_ROWS = 512  # pixel rows that go to the spool at a time


@dataclass
class Stages:
    """What every stage of one image is given.

    Attributes:
        model: The loaded modules.
        plan: Of the image: its recipe, budgets and stages.
        noise: The one source of random numbers of the image, on the CPU, so that a seed means
            the same noise on every device.
        spill: Folder for values on disk.
        listener: Is told of steps, rows and passes.
    """

    model: Model
    plan: Plan
    noise: torch.Generator
    spill: Path
    listener: Listener
    _names: dict[int, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._names = parameter_names(self.model.unet, self.model.autoencoder)

    def base(self, cost: StageCost) -> BandedTensor:
        """Latents (1, C, h, w), float32, of the base picture, from noise."""
        stage, engine = cost.stage, self._engine(cost, "denoiser")
        pipeline = text_to_image(self.model)
        with self._denoising(pipeline, engine, cost):
            made = pipeline(
                **self._arguments(pipeline, engine, cost),
                height=stage.height_px,
                width=stage.width_px,
                num_inference_steps=stage.steps,
            ).images
            (kept,) = engine.keep([made.float()], cost.latents_store)
        return kept

    def upscale(self, cost: StageCost, encoded: BandedTensor) -> BandedTensor:
        """Latents (1, C, h, w), float32: `encoded` of the same shape, renoised and denoised."""
        stage, engine = cost.stage, self._engine(cost, "denoiser")
        assert stage.strength is not None
        pipeline = image_to_image(self.model)
        folder = self.spill if cost.latents_store == "disk" else None
        pipeline.noise_like = lambda latents: noise_like(latents, self.noise, folder)
        pipeline.keep = lambda latents: engine.keep([latents], cost.latents_store)[0]
        with self._denoising(pipeline, engine, cost):
            made = pipeline(
                **self._arguments(pipeline, engine, cost),
                image=encoded,
                strength=stage.strength,
                num_inference_steps=schedule_steps(stage.strength, stage.steps),
            ).images
            anchor = self.model.card.colour_anchor
            anchored: Any = anchor_colours(made.float(), encoded, deviation=anchor == "moments")
            (kept,) = engine.keep([anchored], cost.latents_store)
        return kept

    def decode(self, latents: BandedTensor, cost: StageCost, spool: Spool) -> None:
        """Decode latents into a writable spool of the stage's size, row by row.

        A decoder of half precision that gives no number is tried again in float32, once.
        """
        stage: Stage = cost.stage
        autoencoder: Any = self.model.autoencoder

        def sink(y: int, rows: Rows) -> None:
            spool.write_rows(y, quantise(rows, spool.bits))
            self.listener(RowsDecoded(stage.index, y + len(rows), stage.height_px))

        def decode() -> None:
            with self._naming(stage):
                engine, recipe = self._engine(cost, "decoder"), self.plan.recipe
                if recipe.vae_mode == "tiled":
                    (whole,) = engine.whole([latents])
                    decode_tiled(autoencoder, whole, rows=_TILED_ROWS, sink=sink)
                    return
                pools = recipe.vae_attention == "pooled"
                decode_rows(autoencoder, latents, engine=engine, sink=sink, pools=pools)

        try:
            decode()
        except _StageNotFiniteError as error:
            if autoencoder.dtype == torch.float32:
                raise
            self.listener(Warned(f"{error}; decoding again in float32"))
            dtype = autoencoder.dtype
            autoencoder.to(torch.float32)
            try:
                decode()
            finally:
                autoencoder.to(dtype)
        spool.flush()

    def encode(self, path: Path, cost: StageCost) -> BandedTensor:
        """Latents (1, C, h, w), float32, of the spool at `path`, enlarged to the stage's size."""
        stage = cost.stage
        width_px, height_px = stage.width_px, stage.height_px

        def told(rows: int) -> None:
            self.listener(RowsEncoded(stage.index, rows, height_px))

        with Spool.open(path) as spool, self._naming(stage):
            return encode_rows(
                self.model.autoencoder,
                Resized(spool, width_px=width_px, height_px=height_px),
                width_px=width_px,
                height_px=height_px,
                engine=self._engine(cost, "encoder"),
                store=cost.latents_store,
                told=told,
            )

    def _engine(self, cost: StageCost, component: str) -> Engine:
        """The engine of a component, with the budgets and the band height of the plan."""
        plan, card = self.plan, self.model.card
        assert plan.recipe.threads is not None, "the recipe is not resolved"
        return Engine(
            stores=stores_of(
                component,
                cost.stage,
                card=card,
                recipe=plan.recipe,
                rows=plan.rows,
                budgets=plan.budgets,
            ),
            rows=component_rows(component, plan.rows, card),
            spill=self.spill,
            listener=self.listener,
            flops_per_second=card.flops_per_second_per_core * plan.recipe.threads,
            names=self._names,
        )

    @contextmanager
    def _denoising(self, pipeline: Any, engine: Engine, cost: StageCost) -> Iterator[None]:
        """The denoiser runs in bands, and what it gives is kept, not built as a whole."""
        call = StreamedCall(
            "unet", pipeline.unet, engine,
            give=lambda tensors: engine.keep(tensors, cost.latents_store),
        )  # fmt: skip
        with self._naming(cost.stage), replaced_forward(pipeline.unet, call), torch.no_grad():
            yield

    def _arguments(self, pipeline: Any, engine: Engine, cost: StageCost) -> dict[str, Any]:
        """What both pipelines take. The prompt names the scale that the stage works at."""
        stage, recipe = cost.stage, self.plan.recipe
        word = self.model.card.scale_word(max(stage.width_px, stage.height_px))
        dtype = self.model.unet.dtype
        texts = [self.model.text.scaled(recipe.prompt, word), recipe.negative_prompt]
        prompt, negative = self.model.text.encode(texts).to(dtype)
        return {
            "prompt_embeds": prompt[None],
            "negative_prompt_embeds": negative[None],
            "guidance_scale": stage.guidance_scale,
            "guidance_rescale": GUIDANCE_RESCALE,
            "generator": self.noise,
            "output_type": "latent",
            "callback_on_step_end": self._after_step(pipeline, engine, cost),
        }

    def _after_step(self, pipeline: Any, engine: Engine, cost: StageCost) -> Any:
        """Keeps what the next step reads, and tells that a step is done."""
        began = time.monotonic()
        stage = cost.stage

        def on_step_end(_: object, step: int, __: object, tensors: Tensors) -> Tensors:
            nonlocal began
            latents = tensors["latents"]
            if isinstance(latents, Tensor) and not isinstance(latents, BandedTensor):
                latents = banded_tensor(latents)
            history = _History(pipeline.scheduler)
            kept = engine.keep([latents, *history.tensors], cost.latents_store)
            history.replace(kept[1:])
            now = time.monotonic()
            self.listener(StepDone(stage.index, step + 1, stage.steps, now - began))
            began = now
            return {"latents": kept[0]}

        return on_step_end

    @contextmanager
    def _naming(self, stage: Stage) -> Iterator[None]:
        """Say in which stage a value was no number, and what may help."""
        try:
            yield
        except (NotFiniteError, spools.NotFiniteError) as error:
            advice = "try --dtype float32 or a lower --guidance-scale"
            if self.plan.recipe.dtype == "float32":
                advice = "try a lower --guidance-scale or another --seed"
            size = f"{stage.width_px}x{stage.height_px} px"
            raise _StageNotFiniteError(
                f"stage {stage.index + 1} ({size}): {error}; {advice}"
            ) from error


class _StageNotFiniteError(RunError):
    """Latents or rows that are no numbers, with the stage."""


@dataclass(frozen=True)
class _History:
    """Banded tensors that a scheduler keeps from step to step."""

    scheduler: Any

    @property
    def tensors(self) -> list[BandedTensor]:
        """In the order of its attributes."""
        return [held for _, held in self._held()]

    def replace(self, kept: list[BandedTensor]) -> None:
        """Put kept ones in their place."""
        for (put, _), tensor in zip(list(self._held()), kept, strict=True):
            put(tensor)

    def _held(self) -> Iterator[tuple[Any, BandedTensor]]:
        state = vars(self.scheduler)
        for name, value in state.items():
            if isinstance(value, BandedTensor):
                yield lambda tensor, name=name: state.__setitem__(name, tensor), value
            elif isinstance(value, list):
                for i, each in enumerate(value):
                    if isinstance(each, BandedTensor):
                        yield lambda t, value=value, i=i: value.__setitem__(i, t), each
