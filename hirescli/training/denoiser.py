"""Training of the built-in denoiser: v-prediction on latents of rendered pictures, resumable.

A UNet with linear attention learns whole compositions at 16x16 latents (128 px, the base
size), which are cheap, and in every fourth step pictures at 32x32: near views too, most of
them at low noise over degraded pictures (shrunk and enlarged, the clean latents as target).
That is what the doublings ask: to add detail, where plain denoising would keep blur.

Legend: B batch, C latent channels, h and w latent rows and columns.

References:
    v-prediction: Salimans and Ho, https://arxiv.org/abs/2202.00512
    Zero terminal signal-to-noise ratio: Lin et al., https://arxiv.org/abs/2305.08891
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from hirescli.attention.linfusion import LinFusionAdapter, mount, unmount
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.builtin.text import TextEncoder
from hirescli.training.autoencoder import cosine_learning_rate, save_state
from hirescli.training.dataset import KINDS, load_shard, shard_paths

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SIGNAL_TO_NOISE = 5.0
SUFFIX = {"wide": "", "crop": ", close view", "close": "", "detail": ""}


@dataclass(frozen=True)
class DenoiserRun:
    """Settings of a training run; ``steps`` is the whole schedule, resumed parts included.

    A step sees ``batch`` whole compositions at 16x16 latents or ``full_batch`` pictures at 32x32.
    """

    steps: int = 20_000
    full_every: int = 4
    batch: int = 32
    full_batch: int = 12
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    ema: float = 0.999
    caption_dropout: float = 0.1
    degraded_share: float = 0.7
    wide_share: float = 0.5
    save_every_seconds: float = 180.0


def new_unet(latent_channels: int = 16) -> UNet2DConditionModel:
    """The built-in denoiser with fresh weights: three levels, cross-attention to 384 wide states."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=384,
        attention_head_dim=4,  # diffusers reads it as the number of heads
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, stretched to end in pure noise."""
    return DDIMScheduler(
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


def degrade(x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) shrunk and enlarged by two, as a doubling sees them."""
    small = F.avg_pool2d(x, 2)
    return F.interpolate(small, scale_factor=2.0, mode="bicubic").clamp(-1, 1)


class LatentShards:
    """Latents of every rendered picture, in memory: clean, degraded, and at half the size."""

    def __init__(self, folder: Path, autoencoder: ThinAutoencoder) -> None:
        self.folder, self.autoencoder = folder, autoencoder
        self.seen: set[Path] = set()
        self.clean: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        self.degraded: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        self.small: list[Tensor] = []
        self.captions: dict[str, list[list[str]]] = {kind: [] for kind in KINDS}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take up shards that were not there before."""
        for path in shard_paths(self.folder):
            if path in self.seen:
                continue
            self.seen.add(path)
            kind = path.name.split("-")[0]
            pictures, captions = load_shard(path)
            for chunk in np.array_split(pictures, 8):
                x = torch.from_numpy(np.ascontiguousarray(chunk)).permute(0, 3, 1, 2)
                x = x.float() / 127.5 - 1.0
                self.clean[kind] += self._latents(x)
                self.degraded[kind] += self._latents(degrade(x))
                if kind == "wide":
                    self.small += self._latents(F.avg_pool2d(x, 2))
            self.captions[kind] += [[c + SUFFIX[kind] for c in texts] for texts in captions]
        if not self.seen:
            raise FileNotFoundError(f"no rendered shards in {self.folder}; run `hires train render`")

    def _latents(self, x: Tensor) -> list[Tensor]:
        return list(self.autoencoder.encoder(x).half())


class CachedText:
    """Text states of captions, each computed once; (48, 384) in half precision."""

    def __init__(self) -> None:
        self.encoder, self.states = TextEncoder.load(), dict[str, Tensor]()

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:  # (B, 48, 384)
        new = sorted({caption for caption in captions if caption not in self.states})
        if new:
            for caption, state in zip(new, self.encoder.encode(new), strict=True):
                self.states[caption] = state.half()
        return torch.stack([self.states[caption] for caption in captions]).float()


def draw_timesteps(degraded: Tensor) -> Tensor:
    """Timesteps (B,): anywhere, or for degraded samples where image-to-image begins."""
    anywhere = torch.randint(0, 1000, degraded.shape)
    low = torch.randint(20, 600, degraded.shape)
    return torch.where(degraded, low, anywhere)


def v_loss(v: Tensor, x_t: Tensor, x_0: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """Weighted squared error of the prediction; tensors (B, C, h, w), alpha and sigma (B, 1, 1, 1).

    The v that leads from x_t to x_0 is (alpha_t x_t - x_0) / sigma_t, also where x_t was made
    from a degraded picture. The weight min(1, 5 / SNR) keeps nearly clean samples from ruling.
    """
    wanted = (alpha_t * x_t - x_0) / sigma_t
    weight = (MAX_SIGNAL_TO_NOISE * sigma_t.square() / alpha_t.square().clamp(min=1e-8)).clamp(max=1)
    return (weight * (v - wanted).square()).mean()


class Sampler:
    """Draws training batches from latents and captions."""

    def __init__(self, shards: LatentShards, text: CachedText, run: DenoiserRun, seed: int) -> None:
        self.shards, self.text, self.run = shards, text, run
        self.random = np.random.default_rng(seed)

    def small(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_0, what noise is added to, text states and timesteps of whole small pictures."""
        count = self.run.batch
        index = self.random.integers(len(self.shards.small), size=count)
        x_0 = torch.stack([self.shards.small[i] for i in index]).float()
        text = self.text([self._caption("wide", i) for i in index])
        return x_0, x_0, text, draw_timesteps(torch.zeros(count, dtype=torch.bool))

    def full(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same at 32x32, near views and degraded pictures among them."""
        clean, begun, captions, degraded = [], [], [], []
        for _ in range(self.run.full_batch):
            kind = self._kind()
            i = self.random.integers(len(self.shards.clean[kind]))
            bad = self.random.random() < self.run.degraded_share
            clean.append(self.shards.clean[kind][i])
            begun.append((self.shards.degraded if bad else self.shards.clean)[kind][i])
            captions.append(self._caption(kind, i))
            degraded.append(bad)
        timesteps = draw_timesteps(torch.tensor(degraded))
        return torch.stack(clean).float(), torch.stack(begun).float(), self.text(captions), timesteps

    def _kind(self) -> str:
        near = [kind for kind in KINDS if kind != "wide" and self.shards.clean[kind]]
        if not near or self.random.random() < self.run.wide_share:
            return "wide"
        return near[self.random.integers(len(near))]

    def _caption(self, kind: str, index: int) -> str:
        if self.random.random() < self.run.caption_dropout:
            return ""
        texts = self.shards.captions[kind][index]
        return texts[self.random.integers(len(texts))]


class Trainer:
    """The state of a run: model, average, optimiser, step; saved whole and resumed whole."""

    def __init__(self, state_path: Path, run: DenoiserRun) -> None:
        torch.manual_seed(0)
        self.state_path, self.run, self.step = state_path, run, 0
        self.unet = new_unet()
        self.adapter = LinFusionAdapter.for_unet(self.unet, mid_dim_scale=4)
        mount(self.unet, self.adapter)
        self.unet.to(memory_format=torch.channels_last)
        self.average = {k: v.detach().clone() for k, v in self.unet.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.01
        )
        self.alpha_bar = new_scheduler().alphas_cumprod
        if state_path.exists():
            state = torch.load(state_path, weights_only=True)
            self.unet.load_state_dict(state["model"])
            self.average, self.step = state["ema"], state["step"]
            self.optimizer.load_state_dict(state["optimizer"])
            torch.manual_seed(self.step)

    def train_step(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
        """One step of the optimiser on (x_0, begun, text, timesteps); returns the loss."""
        x_0, begun, text, timesteps = batch
        alpha_bar = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        alpha_t, sigma_t = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_t = alpha_t * begun + sigma_t * torch.randn_like(begun)
        with torch.autocast("cpu", torch.bfloat16):
            v = self.unet(x_t.contiguous(memory_format=torch.channels_last), timesteps, text).sample
        loss = v_loss(v.float(), x_t, x_0, alpha_t, sigma_t)
        for group in self.optimizer.param_groups:
            group["lr"] = cosine_learning_rate(
                self.step, steps=self.run.steps, peak=self.run.learning_rate,
                warmup=self.run.warmup_steps,
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.run.ema, (self.step + 1) / (self.step + 10))
        for name, value in self.unet.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return float(loss.detach())

    def save(self) -> None:
        state: dict[str, Any] = {
            "model": self.unet.state_dict(), "ema": self.average, "step": self.step,
            "optimizer": self.optimizer.state_dict(), "run": asdict(self.run),
        }
        save_state(self.state_path, state)


def train(
    data: Path, autoencoder: ThinAutoencoder, state_path: Path, run: DenoiserRun, *,
    log: Callable[[str], None] = print, stop_after_seconds: float = math.inf,
) -> None:
    """Train or go on training; the state at ``state_path`` holds everything a resume needs."""
    trainer = Trainer(state_path, run)
    shards = LatentShards(data, autoencoder)
    sampler = Sampler(shards, CachedText(), run, seed=trainer.step)
    began = saved = time.monotonic()
    losses: list[float] = []
    while trainer.step < run.steps:
        full = (trainer.step + 1) % run.full_every == 0
        batch = sampler.full() if full else sampler.small()
        losses.append(trainer.train_step(batch))
        now = time.monotonic()
        if now - saved > run.save_every_seconds or trainer.step == run.steps:
            saved = now
            trainer.save()
            log(json.dumps({
                "step": trainer.step, "loss": round(float(np.mean(losses[-200:])), 4),
                "seconds": round(now - began), "captions": len(sampler.text.states),
            }))
            shards.refresh()
            if now - began > stop_after_seconds:
                break


def export(state_path: Path, folder: Path) -> None:
    """Write the averaged UNet, its adapter and the scheduler to ``folder`` in half precision."""
    state = torch.load(state_path, weights_only=True)
    unet = new_unet()
    adapter = LinFusionAdapter.for_unet(unet, mid_dim_scale=4)
    mount(unet, adapter)
    unet.load_state_dict(state["ema"])
    unmount(unet)
    for entry, module in zip(adapter.entries, adapter.children(), strict=True):
        # The softmax attentions have not been trained: they get the projections of the linear ones.
        unet.get_submodule(entry.module_name).load_state_dict(
            {k: v for k, v in module.state_dict().items() if not k.startswith(("to_q_", "to_k_"))}
        )
    unet.half().save_pretrained(folder / "unet", safe_serialization=True)
    adapter.half().save_pretrained(folder / "linfusion", safe_serialization=True)
    new_scheduler().save_pretrained(folder / "scheduler")
