"""The stages of one image: each takes latents to latents through a diffusers pipeline.

Latents never stand whole in memory where the plan keeps them on disk: the pipeline is given
banded tensors, its arithmetic between two denoiser calls is recorded, and after every step what
it holds is computed in bands and kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hirescli.bands.call import StreamedCall, replaced_forward
from hirescli.bands.engine import Engine, banded_tensor
from hirescli.bands.graph import parameter_names
from hirescli.bands.samples import banded_rows
from hirescli.bands.snapshot import Record, Resumable, Tree
from hirescli.bands.tensor import BandedTensor, Grid
from hirescli.cascade.decoded import DecodedRows
from hirescli.cascade.image_prompts import prompted
from hirescli.cascade.methods import anchor_colours
from hirescli.cascade.noise import noise_like
from hirescli.cascade.pictures import no_larger, picture_rows, size_alone
from hirescli.cascade.pipelines import pipeline_of
from hirescli.cascade.skip import SkipResidual, SkipSettings, skipping
from hirescli.errors import NotFiniteError, RunError
from hirescli.events import Listener, RowsDecoded, RowsEncoded, StepDone, Warned
from hirescli.output.resize import Resized
from hirescli.output.spool import Spool
from hirescli.planning.cascade import schedule_steps
from hirescli.planning.cost import component_rows, flops_per_second, stores_of
from hirescli.planning.sizes import base_size
from hirescli.vae.rows import decode_rows, decode_tiled, encode_rows

if TYPE_CHECKING:
    from hirescli.models.load import Model
    from hirescli.planning.cascade import Stage
    from hirescli.planning.cost import StageCost
    from hirescli.planning.plan import Plan
    from hirescli.runs.journal import Journal, StageJournal

Tensors = dict[str, Any]
# With noise of zero signal at the first step, plain guidance overshoots in contrast
# (https://arxiv.org/abs/2305.08891, section 3.4): of the built-in model.
GUIDANCE_RESCALE = 0.5
# Names in the journal.
LATENTS = "latents"
_NOISE = "noise"
_ADOPTED = "adopted"  # in the journal: the latents are another run's
_IN_FLOAT32 = "decodes-in-float32"
_TILED_ROWS = 512  # pixel rows that go to the spool at a time


@dataclass(frozen=True)
class Guides:
    """What guides the denoiser beside the prompt, at every stage.

    Attributes:
        controlnets: Modules, each with the spool of its control image and its scale.
        image_embeds: Of image prompts, as the pipelines take them; None: there are none.
    """

    controlnets: tuple[tuple[Any, Path, float], ...] = ()
    image_embeds: list[Tensor] | None = None


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
        journal: Remembers what is finished.
        guides: Control images and image prompts.
    """

    model: Model
    plan: Plan
    noise: torch.Generator
    spill: Path
    listener: Listener
    journal: Journal
    guides: Guides = field(default_factory=Guides)

    @property
    def place(self) -> torch.device:
        """Where bands are computed."""
        return torch.device(self.plan.recipe.device or "cpu")

    def latents(self, cost: StageCost, picture: Callable[[], Path]) -> BandedTensor:
        """Latents (1, C, h, w), float32, of a stage: remembered ones, or made.

        Args:
            cost: Of the stage.
            picture: Gives the spool that the stage enlarges; asked only if they are made.

        Raises:
            RunError: If they were another run's, which is to draw nothing, and are damaged.
        """
        stage = cost.stage
        if (found := self._remembered(cost)) is not None:
            return found
        if self.journal.stage(stage.index).fact(_ADOPTED) is not None:
            raise RunError(
                "the latents that were to be decoded are damaged; give --from-latents again, or "
                "--restart to draw the picture"
            )
        # Some schedulers draw from the global numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.plan.recipe.seed + stage.index)
            if stage.strength is None:
                return self.base(cost)
            return self.upscale(cost, self.encode(picture(), cost))

    @staticmethod
    def adopt_latents(journal: StageJournal, other: StageJournal) -> bool:
        """Take over a stage's latents from another run; whether it has whole ones."""
        noise = other.fact(_NOISE)
        if noise is None or not journal.adopt(LATENTS, other):
            return False
        journal.note(_NOISE, **noise)
        journal.note(_ADOPTED)
        return True

    def has_latents(self, index: int) -> bool:
        """Whether a stage's latents are remembered, whole, with where the noise is behind them."""
        journal = self.journal.stage(index)
        return journal.holds(LATENTS) and journal.fact(_NOISE) is not None

    def go_on_behind(self, index: int) -> bool:
        """Draw noise from where a stage left it; whether that is known."""
        fact = self.journal.stage(index).fact(_NOISE)
        if fact is not None:
            state = bytearray.fromhex(fact["state"])
            self.noise.set_state(torch.frombuffer(state, dtype=torch.uint8))
        return fact is not None

    def _remembered(self, cost: StageCost) -> BandedTensor | None:
        stage = cost.stage
        shape = (1, self.model.card.latent_channels, stage.latent_height, stage.latent_width)
        engine = self._engine(cost, "denoiser")
        found = engine.recall(shape, cost.latents_store, record=LATENTS, device=self.place)
        known = found is not None and self.go_on_behind(stage.index)
        return found if known else None

    def _keep_latents(self, latents: Any, engine: Engine, cost: StageCost) -> BandedTensor:
        """Keep what a stage made, and with it where the noise is: drawing goes on from there."""
        state = self.noise.get_state().numpy().tobytes().hex()
        self.journal.stage(cost.stage.index).note(_NOISE, state=state)
        (kept,) = engine.keep([latents], cost.latents_store, record=LATENTS)
        return kept

    def base(self, cost: StageCost) -> BandedTensor:
        """Latents of the base picture, from noise."""
        stage, engine = cost.stage, self._engine(cost, "denoiser")
        with self._pipeline(cost, engine, from_picture=False) as pipeline:
            pipeline.keep = lambda latents: engine.keep([latents], cost.latents_store)[0]
            made = pipeline(
                **self._arguments(pipeline, engine, cost),
                **self._control(stage, "image"),
                height=stage.height_px,
                width=stage.width_px,
                num_inference_steps=stage.steps,
            ).images
            latents = self._unpacked(made, pipeline, engine, cost)
            return self._keep_latents(latents.float(), engine, cost)

    def upscale(self, cost: StageCost, encoded: BandedTensor) -> BandedTensor:
        """Latents of the shape of `encoded`: that renoised and denoised."""
        stage, engine = cost.stage, self._engine(cost, "denoiser")
        assert stage.strength is not None
        folder = self.spill if cost.latents_store == "disk" else None
        noise = noise_like(encoded, self.noise, folder)
        with self._pipeline(cost, engine, from_picture=True) as pipeline:
            pipeline.noise = noise
            pipeline.keep = lambda latents: engine.keep([latents], cost.latents_store)[0]
            residual = None
            if self._skips(stage):
                residual = SkipResidual(pipeline.scheduler, encoded, noise, self._skip_settings)
            made = pipeline(
                **self._arguments(pipeline, engine, cost, residual),
                **self._control(stage, "control_image"),
                image=encoded,
                strength=stage.strength,
                num_inference_steps=schedule_steps(
                    stage.strength, stage.steps, flows=self.model.card.is_transformer
                ),
                **self._size(stage),
            ).images
            latents = self._unpacked(made, pipeline, engine, cost).float()
            if stage.kind == "upscale":
                deviation = self.model.card.colour_anchor == "moments"
                latents = anchor_colours(latents, encoded, deviation=deviation)
            return self._keep_latents(latents, engine, cost)

    @staticmethod
    def _unpacked(latents: Any, pipeline: Any, engine: Engine, cost: StageCost) -> Any:
        """Latents (1, C, h, w), where a pipeline has them as tokens.

        They are computed at once: what is made of them has other inputs, in rows of latents.
        """
        if not hasattr(pipeline, "unpacked"):
            return latents
        return engine.keep([pipeline.unpacked(latents, cost.stage)], cost.latents_store)[0]

    def decode(self, latents: BandedTensor, cost: StageCost, spool: Spool) -> Tree:
        """Decode latents into a writable spool of the stage's size, row by row.

        A decoder of half precision that gives no number is tried again in float32, once.

        Returns:
            What `hirescli.cascade.decoded.holds` tells the spool by.
        """
        stage, autoencoder = cost.stage, self.model.autoencoder
        journal = self.journal.stage(stage.index)
        rows = DecodedRows(
            spool, lambda n: self.listener(RowsDecoded(stage.index, n, stage.height_px))
        )
        if journal.fact(_IN_FLOAT32) is None:
            try:
                self._decode(latents, cost, rows, journal.call("decoder"))
                return rows.state()
            except _StageNotFiniteError as error:
                if autoencoder.dtype == torch.float32:
                    raise
                self.listener(Warned(f"{error}; decoding again in float32"))
                journal.note(_IN_FLOAT32)
        dtype = autoencoder.dtype
        autoencoder.to(torch.float32)
        try:
            self._decode(latents, cost, rows, journal.call("decoder-float32"))
        finally:
            autoencoder.to(dtype)
        return rows.state()

    def _decode(
        self, latents: BandedTensor, cost: StageCost, rows: DecodedRows, record: Record
    ) -> None:
        recipe = self.plan.recipe
        with self._naming(cost.stage):
            engine = self._engine(cost, "decoder")
            if recipe.vae_mode == "tiled":
                (whole,) = engine.whole([latents])
                decode_tiled(self.model.autoencoder, whole, rows=_TILED_ROWS, sink=rows.write)
                return
            decode_rows(
                self.model.autoencoder, latents, engine=engine, sink=rows.write,
                pools=recipe.vae_attention == "pooled", resumable=Resumable(record, [rows]),
            )  # fmt: skip

    def encode(self, path: Path, cost: StageCost, record: str = "encoder") -> BandedTensor:
        """Latents (1, C, h, w), float32, of the spool at `path`, enlarged to the stage's size.

        The journal remembers them as `record`.
        """
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
                place=self.place,
                told=told,
                pools=self.plan.recipe.vae_attention == "pooled",
                record=record,
            )

    def _engine(self, cost: StageCost, component: str) -> Engine:
        """The engine of a component, with the budgets and the band height of the plan."""
        plan, card = self.plan, self.model.card
        modules = [self.model.unet, self.model.autoencoder]
        modules += [module for module, _, _ in self.guides.controlnets]
        attention = cost.stage.attention if component == "denoiser" else "full"
        with self.model.attending(attention):  # an adapter's weights have names, too
            names = parameter_names(*modules)
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
            loads_weights=plan.budgets.loads_weights,
            flops_per_second=flops_per_second(
                component, card=card, recipe=plan.recipe, budgets=plan.budgets
            ),
            names=names,
            journal=self.journal.stage(cost.stage.index),
        )

    @contextmanager
    def _pipeline(self, cost: StageCost, engine: Engine, *, from_picture: bool) -> Iterator[Any]:
        """A pipeline whose denoiser runs in bands; what it gives is kept, not built whole."""
        stage, unet, card = cost.stage, self.model.unet, self.model.card
        controlnets = [module for module, _, _ in self.guides.controlnets]
        call = StreamedCall(
            self.model.card.denoiser_part, unet, engine,
            give=lambda tensors: engine.keep(tensors, cost.latents_store, record="denoiser"),
        )  # fmt: skip
        with ExitStack() as contexts:
            contexts.enter_context(self._naming(stage))
            contexts.enter_context(self.model.attending(stage.attention))
            contexts.enter_context(enlarging(self.model, stage, controlnets))
            if (embeds := self.guides.image_embeds) is not None and card.family == "flux":
                contexts.enter_context(prompted(unet, embeds))
            contexts.enter_context(replaced_forward(unet, call))
            if self._skips(stage):
                settings = self._skip_settings
                contexts.enter_context(skipping(unet, ratio=stage.ratio, settings=settings))
            for number, controlnet in enumerate(controlnets):
                # What it gives is read by the denoiser and never stands whole.
                lazy = StreamedCall(f"controlnet.{number}", controlnet, engine, give=list)
                contexts.enter_context(replaced_forward(controlnet, lazy))
            contexts.enter_context(torch.no_grad())
            yield pipeline_of(
                self.model,
                scheduler=self.plan.recipe.scheduler or self.model.card.scheduler,
                from_picture=from_picture,
                controlnets=controlnets,
                control_latents=self._control_latents(cost) if self._encodes_controls else None,
                place=self.place,
                dynamic_shifting=stage.kind == "base" or self.model.card.upscale_dynamic_shifting,
            )

    def _skips(self, stage: Stage) -> bool:
        return self.plan.recipe.method == "skip" and stage.kind == "upscale"

    @property
    def _skip_settings(self) -> SkipSettings:
        return SkipSettings(train_steps=self.model.scheduler.config.num_train_timesteps)

    def _arguments(
        self,
        pipeline: Any,
        engine: Engine,
        cost: StageCost,
        residual: SkipResidual | None = None,
    ) -> dict[str, Any]:
        """What all pipelines take. The prompt names the scale that the stage works at."""
        stage, recipe, card = cost.stage, self.plan.recipe, self.model.card
        word = card.scale_word(max(stage.width_px, stage.height_px))
        prompt = self.model.text.scaled(recipe.prompt, word)
        states = self.model.text.encode(prompt, recipe.negative_prompt)
        made: dict[str, Any] = {
            key: value.to(self.place, self.model.unet.dtype) for key, value in states.items()
        }
        if card.family == "builtin":
            made["guidance_rescale"] = GUIDANCE_RESCALE
        if card.family == "sdxl":
            # The size that the model is told stays that of a base picture.
            width_px, height_px = base_size(recipe.width_px, recipe.height_px, card)
            made["original_size"] = made["target_size"] = (height_px, width_px)
        # FLUX's pipelines have other ways of taking them, and one of them none: `prompted`.
        if (embeds := self.guides.image_embeds) is not None and card.family != "flux":
            if stage.guidance_scale <= 1:  # no guidance: what is to be avoided is not asked for
                embeds = [each.chunk(2)[1] for each in embeds]
            made["ip_adapter_image_embeds"] = embeds
        return made | {
            "guidance_scale": stage.guidance_scale,
            "generator": self.noise,
            "output_type": "latent",
            "callback_on_step_end": self._after_step(pipeline, engine, cost, residual),
        }

    def _size(self, stage: Stage) -> dict[str, int]:
        """The size of a picture that a pipeline does not take from its latents."""
        if not self.model.card.is_transformer:
            return {}
        return {"height": stage.height_px, "width": stage.width_px}

    def _control(self, stage: Stage, name: str) -> dict[str, Any]:
        """Control images at the size of a stage, under the name that its pipeline has for them."""
        scales = [scale for _, _, scale in self.guides.controlnets]
        if not scales:
            return {}
        one = len(scales) == 1
        made: dict[str, Any] = {"controlnet_conditioning_scale": scales[0] if one else scales}
        if self._encodes_controls:
            name = "control_image"
            images = [size_alone(stage.width_px, stage.height_px)] * len(scales)
            if not one:  # a pipeline that is told of no modes leaves all out
                made["control_mode"] = [None] * len(scales)
        else:
            images = [self._control_rows(number, stage) for number in range(len(scales))]
        return made | {name: images[0] if one else images}

    @property
    def _encodes_controls(self) -> bool:
        """Whether control images are read as latents."""
        return self.model.card.family == "flux" and bool(self.guides.controlnets)

    def _control_rows(self, number: int, stage: Stage) -> BandedTensor:
        """A control image (1, 3, H, W)."""
        return picture_rows(
            self._control_spool(number, stage), stage.width_px, stage.height_px,
            level=self.model.card.vae_factor,
            dtype=self.guides.controlnets[number][0].dtype,
            place=self.place,
        )  # fmt: skip

    def _control_latents(self, cost: StageCost) -> Iterator[Tensor]:
        """Latents (1, C, h, w) of the control images, each encoded when it is asked for."""
        for number in range(len(self.guides.controlnets)):
            spool = self._control_spool(number, cost.stage)
            encoded = self.encode(spool, cost, f"control-{number}")
            yield encoded.to(self.model.unet.dtype)

    def _control_spool(self, number: int, stage: Stage) -> Path:
        """A control image that is no larger than a stage."""
        spool = self.guides.controlnets[number][1]
        smaller = spool.with_name(f"smaller-{number}.spool.tif")
        return no_larger(spool, smaller, width_px=stage.width_px, height_px=stage.height_px)

    def _after_step(
        self, pipeline: Any, engine: Engine, cost: StageCost, residual: SkipResidual | None
    ) -> Any:
        """Keeps what the next step reads, and tells that a step is done."""
        began = time.monotonic()
        stage = cost.stage

        def on_step_end(_: object, step: int, __: object, tensors: Tensors) -> Tensors:
            nonlocal began
            latents = tensors["latents"]
            if isinstance(latents, Tensor) and not isinstance(latents, BandedTensor):
                latents = self._banded(latents, stage)
            if residual is not None:
                latents = residual.after_step(latents, step=step, steps=stage.steps)
            history = _History(pipeline.scheduler)
            kept = engine.keep([latents, *history.tensors], cost.latents_store)
            history.replace(kept[1:])
            now = time.monotonic()
            self.listener(StepDone(stage.index, step + 1, stage.steps, now - began))
            began = now
            return {"latents": kept[0]}

        return on_step_end

    def _banded(self, latents: Tensor, stage: Stage) -> BandedTensor:
        """Plain latents of a stage as banded ones."""
        if latents.ndim == 4:
            return banded_tensor(latents)
        packs = self.model.card.packs
        rows, width = stage.latent_height // packs, stage.latent_width // packs
        return banded_rows(latents, Grid(rows, width, Fraction(1), 1))

    @contextmanager
    def _naming(self, stage: Stage) -> Iterator[None]:
        """Say in which stage a value was no number, and what may help."""
        try:
            yield
        except NotFiniteError as error:
            advice = "try --dtype float32 or a lower --guidance-scale"
            if self.plan.recipe.dtype == "float32":
                advice = "try a lower --guidance-scale or another --seed"
            size = f"{stage.width_px}x{stage.height_px} px"
            raise _StageNotFiniteError(
                f"stage {stage.index + 1} ({size}): {error}; {advice}"
            ) from error


@contextmanager
def enlarging(model: Model, stage: Stage, controlnets: Sequence[Any] = ()) -> Iterator[None]:
    """Rotary embeddings are those of larger pictures, as the card says for upscaling stages.

    Those of ControlNets too, which are copies of the denoiser's first blocks.
    """
    factor = 1.0 if stage.kind == "base" else model.card.upscale_ntk_factor
    found: list[Any] = [getattr(each, "pos_embed", None) for each in (model.unet, *controlnets)]
    embeds = [(embed, embed.theta) for embed in found if hasattr(embed, "theta")]
    for embed, theta in embeds:
        embed.theta = theta * factor if factor != 1 else theta
    try:
        yield
    finally:
        for embed, theta in embeds:
            embed.theta = theta


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
