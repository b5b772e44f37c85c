"""Training of the built-in denoiser: v-prediction on latents of rendered pictures, resumable.

A UNet with softmax attention, the teacher of the linear one, takes three lessons in turn. It
learns whole compositions at 8x8 latents (64 px, the base size), which are cheap; and pictures at
16x16 and 32x32, near views among them, under the noise of the doublings and most of them
degraded (shrunk and enlarged, clean latents as target). That is what the doublings ask: to add
detail, where plain denoising would keep blur.

Legend: B batch, C latent channels, h and w latent rows and columns.

References:
    v-prediction: Salimans and Ho, https://arxiv.org/abs/2202.00512
    Zero terminal signal-to-noise ratio: Lin et al., https://arxiv.org/abs/2305.08891
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.training import sheets, trainer
from hirescli.training.dataset import finished_shards
from hirescli.training.lessons import (
    COMPOSITION,
    LESSONS,
    LatentShards,
    Lesson,
    Sampler,
    TextTable,
)
from hirescli.training.trainer import (
    Schedule,
    State,
    compile_on_gpu,
    load_exported,
    load_weights,
    read_state,
)

MAX_SIGNAL_TO_NOISE = 5.0
CHANNELS = (64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class DenoiserRun(Schedule):
    """Settings of a training run; `channels` are the widths of the UNet's three levels.

    Steps take `lessons` in turn; `batch_scale` multiplies the batches of all of them, for
    machines that fill slowly.
    """

    steps: int = 6_000
    learning_rate: float = 6e-4
    warmup_steps: int = 200
    ema: float = 0.9995
    caption_dropout: float = 0.1
    save_every_seconds: float = 180.0
    batch_scale: int = 1
    channels: tuple[int, int, int] = CHANNELS
    lessons: tuple[Lesson, ...] = LESSONS


def new_unet(
    latent_channels: int = 16, channels: tuple[int, int, int] = CHANNELS
) -> UNet2DConditionModel:
    """The built-in denoiser, fresh: three levels, softmax self-attention at the lower two.

    The text reaches it twice: its token states (384 channels) by cross-attention, and pooled by
    a small attention of its own, added to the time's embedding, which scales and shifts every
    residual block: so the subject is known everywhere at once, also where no attention is.
    """
    return UNet2DConditionModel(  # type: ignore[no-any-return]
        sample_size=COMPOSITION.latent_px,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=384,
        attention_head_dim=4,  # diffusers reads it as the number of heads
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=6,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, stretched to end in pure noise."""
    return DDIMScheduler(  # type: ignore[no-any-return]
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


def v_loss(v: Tensor, x_t: Tensor, x_0: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """Weighted squared error of the prediction (B, C, h, w); alpha and sigma are (B, 1, 1, 1).

    The v that leads from x_t to x_0 is (alpha_t x_t - x_0) / sigma_t, also where x_t was made
    from a degraded picture. The weight min(1, 5 / SNR) keeps nearly clean samples from ruling.
    """
    wanted = (alpha_t * x_t - x_0) / sigma_t
    noise_to_signal = sigma_t.square() / alpha_t.square().clamp(min=1e-8)
    weight = (MAX_SIGNAL_TO_NOISE * noise_to_signal).clamp(max=1)
    return (weight * (v - wanted).square()).mean()


class DenoiserTraining:
    """One training of the denoiser, fresh or resumed.

    Args:
        data: The folder of rendered shards, some of kind wide among them.
        autoencoder: The finished one, in float32.
        state_path: The state's file.
        run: The settings.
        start: Where to begin while there is no state: another training's file, or the `unet`
            folder of an export. None: fresh weights.

    Raises:
        RequestError: If the folder holds no such shards, or a file is of another model.
    """

    def __init__(
        self,
        data: Path,
        autoencoder: ThinAutoencoder,
        state_path: Path,
        run: DenoiserRun,
        start: Path | None = None,
    ) -> None:
        torch.manual_seed(0)
        finished_shards(data, ["wide"])  # before anything heavy
        self.run, self.device = run, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.unet = new_unet(channels=run.channels)
        if start is not None and not state_path.exists():
            load_weights(self.unet, load(start).state_dict(), start)
        self.unet.to(self.device, memory_format=torch.channels_last)  # type: ignore[arg-type]
        self.state = State(state_path, self.unet, self.unet.parameters(), run, weight_decay=0.01)
        compile_on_gpu(self.unet, self.device)
        self.alpha_bar = new_scheduler().alphas_cumprod.to(self.device)
        shards = LatentShards(data, autoencoder, run.lessons, self.device)
        self.sampler = Sampler(
            shards, TextTable(self.device), caption_dropout=run.caption_dropout,
            seed=self.state.step,
        )  # fmt: skip
        self.samples = self._samples(autoencoder)

    def _samples(self, autoencoder: ThinAutoencoder) -> sheets.Samples:
        averaged = new_unet(channels=self.run.channels).requires_grad_(requires_grad=False)
        averaged.to(self.device, memory_format=torch.channels_last)  # type: ignore[arg-type]
        encode = self.sampler.text.encoder.encode
        return sheets.Samples(
            averaged, autoencoder.to(self.device), new_scheduler(),  # type: ignore[arg-type]
            text=encode(sheets.PROMPTS).to(self.device), empty=encode([""]).to(self.device),
        )  # fmt: skip

    def loss(self) -> Tensor:
        """The loss of the next batch, of the lessons in turn."""
        lesson = self.run.lessons[self.state.step % len(self.run.lessons)]
        batch = self.sampler.batch(lesson, lesson.batch * self.run.batch_scale)
        x_0, begun, timesteps = batch.x_0, batch.begun, batch.timesteps
        alpha_bar = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        alpha_t, sigma_t = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_t = alpha_t * begun + sigma_t * torch.randn_like(begun)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            v = self.unet(x_t, timesteps, batch.text).sample
        return v_loss(v.float(), x_t, x_0, alpha_t, sigma_t)

    def report(self) -> dict[str, float]:
        """How many different captions it has read since it was started."""
        return {"captions": len(self.sampler.text.rows)}

    def sheet(self) -> Tensor:
        """Samples of fixed prompts at 128 px: a base stage with guidance, doubled once."""
        self.samples.unet.load_state_dict(self.state.average)
        return self.samples.draw()

    def refresh(self) -> None:
        """Take up shards that were not there before."""
        self.sampler.shards.refresh()


def train(
    data: Path,
    autoencoder: ThinAutoencoder,
    state_path: Path,
    run: DenoiserRun,
    *,
    start: Path | None = None,
    log: Callable[[str], None] = print,
    stop_after_seconds: float = math.inf,
) -> None:
    """Train or go on training; the state at ``state_path`` holds everything a resume needs.

    ``start`` is where a new one begins, as of `DenoiserTraining`.

    Raises:
        RequestError: As `DenoiserTraining`.
    """
    if trainer.is_at_end(state_path, run):
        load(state_path)  # refuses what is another model's
        log(trainer.line_at_end(run))
        return
    training = DenoiserTraining(data, autoencoder, state_path, run, start)
    trainer.train(training, log=log, stop_after_seconds=stop_after_seconds)


def load(path: Path) -> UNet2DConditionModel:
    """The averaged UNet of a training state, or an exported one from its folder; float32, softmax.

    Raises:
        RequestError: If there is none.
    """
    if path.is_dir():
        return load_exported(_as_exported, path, kind="UNet2DConditionModel", part="unet")
    state = read_state(path)
    unet = new_unet(channels=state["run"].get("channels", CHANNELS))
    load_weights(unet, state["ema"], path)
    return unet


def _as_exported(config: Mapping[str, Any]) -> UNet2DConditionModel:
    return new_unet(channels=tuple(config["block_out_channels"]))


def export(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write a UNet, which becomes one of half precision, and the scheduler to ``folder``."""
    unet.half().save_pretrained(folder / "unet", safe_serialization=True)
    new_scheduler().save_pretrained(folder / "scheduler")
