"""Training of the built-in denoiser: v-prediction on latents of rendered pictures, resumable.

A UNet with linear attention learns whole compositions at 16x16 latents (128 px, the base
size), which are cheap, and in every fourth step pictures at 32x32: near views too, at the
noise of the doublings, most of them degraded (shrunk and enlarged, clean latents as target).
That is what the doublings ask: to add detail, where plain denoising would keep blur.

Legend: B batch, C latent channels, h and w latent rows and columns.

References:
    v-prediction: Salimans and Ho, https://arxiv.org/abs/2202.00512
    Zero terminal signal-to-noise ratio: Lin et al., https://arxiv.org/abs/2305.08891
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from hirescli.attention.linfusion import LinFusionAdapter, mount, unmount
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.builtin.text import TextEncoder
from hirescli.training import trainer
from hirescli.training.dataset import KINDS, finished_shards, load_shard
from hirescli.training.trainer import Schedule, State, load_weights, read_state

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SIGNAL_TO_NOISE = 5.0
TIMESTEPS = 1000
DOUBLING_TIMESTEPS = (20, 600)  # where image-to-image of the doublings begins and ends
SUFFIX = {"wide": "", "crop": ", close view", "close": "", "detail": ""}
CHANNELS = (64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class DenoiserRun(Schedule):
    """Settings of a training run; `channels` are the widths of the UNet's three levels.

    A step sees ``batch`` whole compositions at 16x16 latents or ``full_batch`` pictures at 32x32.
    """

    steps: int = 5_300
    full_every: int = 4
    batch: int = 32
    full_batch: int = 12
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    caption_dropout: float = 0.1
    degraded_share: float = 0.7
    wide_share: float = 0.5
    save_every_seconds: float = 180.0
    channels: tuple[int, int, int] = CHANNELS


def new_unet(
    latent_channels: int = 16, channels: tuple[int, int, int] = CHANNELS
) -> UNet2DConditionModel:
    """The built-in denoiser, fresh: three levels, cross-attention to states of 384 channels."""
    return UNet2DConditionModel(  # type: ignore[no-any-return]
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=384,
        attention_head_dim=4,  # diffusers reads it as the number of heads
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
        finished_shards(self.folder, ["wide"])  # without these there is nothing for a base
        for path in finished_shards(self.folder):
            if path in self.seen:
                continue
            self.seen.add(path)
            kind = path.name.split("-")[0]
            pictures, captions = load_shard(path)
            for chunk in np.array_split(pictures, 8):
                # A copy: the shard is mapped read-only, and torch knows no such tensors.
                x = torch.from_numpy(np.array(chunk)).permute(0, 3, 1, 2)
                x = x.float() / 127.5 - 1.0
                self.clean[kind] += self._latents(x)
                self.degraded[kind] += self._latents(degrade(x))
                if kind == "wide":
                    self.small += self._latents(F.avg_pool2d(x, 2))
            self.captions[kind] += [[c + SUFFIX[kind] for c in texts] for texts in captions]

    def _latents(self, x: Tensor) -> list[Tensor]:
        return list(self.autoencoder.encoder(x).half())


class CachedText:
    """Text states of captions, each computed once; (48, 384) in half precision."""

    def __init__(self) -> None:
        self.encoder, self.states = TextEncoder.load(), dict[str, Tensor]()

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """States (B, 48, 384), float32."""
        new = sorted({caption for caption in captions if caption not in self.states})
        if new:
            for caption, state in zip(new, self.encoder.encode(new), strict=True):
                self.states[caption] = state.half()
        return torch.stack([self.states[caption] for caption in captions]).float()


def v_loss(v: Tensor, x_t: Tensor, x_0: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """Weighted squared error of the prediction (B, C, h, w); alpha and sigma are (B, 1, 1, 1).

    The v that leads from x_t to x_0 is (alpha_t x_t - x_0) / sigma_t, also where x_t was made
    from a degraded picture. The weight min(1, 5 / SNR) keeps nearly clean samples from ruling.
    """
    wanted = (alpha_t * x_t - x_0) / sigma_t
    noise_to_signal = sigma_t.square() / alpha_t.square().clamp(min=1e-8)
    weight = (MAX_SIGNAL_TO_NOISE * noise_to_signal).clamp(max=1)
    return (weight * (v - wanted).square()).mean()


class Sampler:
    """Draws training batches from latents and captions."""

    def __init__(
        self, shards: LatentShards, text: CachedText, run: DenoiserRun, seed: int
    ) -> None:
        self.shards, self.text, self.run = shards, text, run
        self.random = np.random.default_rng(seed)

    def small(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_0, what noise is added to, text states and timesteps of whole small pictures."""
        count = self.run.batch
        index = self.random.integers(len(self.shards.small), size=count)
        x_0 = torch.stack([self.shards.small[i] for i in index]).float()
        text = self.text([self._caption("wide", int(i)) for i in index])
        return x_0, x_0, text, torch.randint(0, TIMESTEPS, (count,))

    def full(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same at 32x32, near views and degraded pictures among them."""
        clean, begun, captions = [], [], []
        for _ in range(self.run.full_batch):
            kind = self._kind()
            i = int(self.random.integers(len(self.shards.clean[kind])))
            bad = self.random.random() < self.run.degraded_share
            clean.append(self.shards.clean[kind][i])
            begun.append((self.shards.degraded if bad else self.shards.clean)[kind][i])
            captions.append(self._caption(kind, i))
        timesteps = torch.randint(*DOUBLING_TIMESTEPS, (self.run.full_batch,))
        x_0 = torch.stack(clean).float()
        return x_0, torch.stack(begun).float(), self.text(captions), timesteps

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


class DenoiserTraining:
    """One training of the denoiser, fresh or resumed.

    Args:
        data: The folder of rendered shards, some of kind wide among them.
        autoencoder: The finished one, in float32.
        state_path: The state's file.
        run: The settings.

    Raises:
        RequestError: If the folder holds no such shards, or the file is no state of this model.
    """

    def __init__(
        self, data: Path, autoencoder: ThinAutoencoder, state_path: Path, run: DenoiserRun
    ) -> None:
        torch.manual_seed(0)
        finished_shards(data, ["wide"])  # before anything heavy
        self.run = run
        self.unet, _ = _with_adapter(run.channels)
        self.unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        self.state = State(state_path, self.unet, self.unet.parameters(), run, weight_decay=0.01)
        self.alpha_bar = new_scheduler().alphas_cumprod
        shards = LatentShards(data, autoencoder)
        self.sampler = Sampler(shards, CachedText(), run, seed=self.state.step)

    def loss(self) -> Tensor:
        """The loss of the next batch, small or full in turn."""
        full = (self.state.step + 1) % self.run.full_every == 0
        x_0, begun, text, timesteps = self.sampler.full() if full else self.sampler.small()
        alpha_bar = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        alpha_t, sigma_t = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_t = alpha_t * begun + sigma_t * torch.randn_like(begun)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            v = self.unet(x_t, timesteps, text).sample
        return v_loss(v.float(), x_t, x_0, alpha_t, sigma_t)

    def report(self) -> dict[str, float]:
        """How many different captions it has read since it was started."""
        return {"captions": len(self.sampler.text.states)}

    def refresh(self) -> None:
        """Take up shards that were not there before."""
        self.sampler.shards.refresh()


def train(
    data: Path,
    autoencoder: ThinAutoencoder,
    state_path: Path,
    run: DenoiserRun,
    *,
    log: Callable[[str], None] = print,
    stop_after_seconds: float = math.inf,
) -> None:
    """Train or go on training; the state at ``state_path`` holds everything a resume needs.

    Raises:
        RequestError: As `DenoiserTraining`.
    """
    training = DenoiserTraining(data, autoencoder, state_path, run)
    trainer.train(training, log=log, stop_after_seconds=stop_after_seconds)


def load(state_path: Path) -> tuple[UNet2DConditionModel, LinFusionAdapter]:
    """The averaged UNet, its adapter not mounted, of a training state; float32.

    Raises:
        RequestError: If the file is no state of a denoiser.
    """
    state = read_state(state_path)
    unet, adapter = _with_adapter(state["run"].get("channels", CHANNELS))
    load_weights(unet, state["ema"], state_path)
    unmount(unet)
    for entry, module in zip(adapter.entries, adapter.children(), strict=True):
        # The softmax attentions are not trained: they get the projections of the linear ones.
        unet.get_submodule(entry.module_name).load_state_dict(
            {k: v for k, v in module.state_dict().items() if not k.startswith(("to_q_", "to_k_"))}
        )
    return unet, adapter


def export(state_path: Path, folder: Path) -> None:
    """Write the averaged UNet, its adapter and the scheduler to ``folder`` in half precision.

    Raises:
        RequestError: If the file is no state of a denoiser.
    """
    unet, adapter = load(state_path)
    for module, name in ((unet, "unet"), (adapter, "linfusion")):
        half = module.half()  # type: ignore[no-untyped-call]
        half.save_pretrained(folder / name, safe_serialization=True)
    new_scheduler().save_pretrained(folder / "scheduler")


def _with_adapter(
    channels: tuple[int, int, int],
) -> tuple[UNet2DConditionModel, LinFusionAdapter]:
    unet = new_unet(channels=channels)
    adapter = LinFusionAdapter.for_unet(unet, mid_dim_scale=4)
    mount(unet, adapter)
    return unet, adapter
