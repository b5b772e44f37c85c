"""Training of the thin autoencoder: reconstruction on crops, resumable, with its gate.

The encoder is a projection on principal components, set once from pictures; only the decoder
learns. The loss is L1 on the picture plus L1 on its Laplacian pyramid, which weighs edges and
grain against flat colour. A little noise on the latents makes the decoder forgiving of a
denoiser's errors.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.training.dataset import load_shard, shard_paths

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class AutoencoderRun:
    """Settings of a training run. ``steps`` is the whole schedule, resumed parts included."""

    steps: int = 30_000
    batch: int = 16
    crop_px: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    latent_noise: float = 0.05
    ema: float = 0.999
    save_every_seconds: float = 120.0


def learned(model: ThinAutoencoder) -> list[nn.Parameter]:
    """The parameters of the decoder; the encoder is set, not learned."""
    return [*model.decoder_linear.parameters(), *model.decoder.parameters()]


def laplacian_loss(made: Tensor, wanted: Tensor, levels: int = 3) -> Tensor:
    """Mean absolute difference of Laplacian bands of two pictures (B, 3, H, W)."""
    loss = made.new_zeros(())
    for _ in range(levels):
        made_low, wanted_low = F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2)
        band = made - F.interpolate(made_low, scale_factor=2.0)
        wanted_band = wanted - F.interpolate(wanted_low, scale_factor=2.0)
        loss = loss + (band - wanted_band).abs().mean()
        made, wanted = made_low, wanted_low
    return loss


def reconstruction_loss(model: ThinAutoencoder, x: Tensor, run: AutoencoderRun) -> Tensor:
    """The training loss on pictures (B, 3, H, W) in [-1, 1]; the encoder gets no gradient."""
    with torch.no_grad():
        z = model.encoder(x)
        noisy = z + run.latent_noise * torch.randn_like(z)
    (made,) = model.decode(noisy, return_dict=False)
    made = made.float()
    return (made - x).abs().mean() + laplacian_loss(made, x)


class Crops:
    """Random crops of rendered shards; shards that appear while training are picked up."""

    def __init__(self, folder: Path, crop_px: int, seed: int) -> None:
        self.folder, self.crop_px = folder, crop_px
        self.random = np.random.default_rng(seed)
        self.shards: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
        self.refresh()

    def refresh(self) -> None:
        self.shards = [load_shard(path)[0] for path in shard_paths(self.folder)]
        if not self.shards:
            raise FileNotFoundError(f"no rendered shards in {self.folder}; run `hires train render`")

    def batch(self, count: int) -> Tensor:
        """``count`` crops (count, 3, crop, crop) in [-1, 1], mirrored at random."""
        crops = []
        for _ in range(count):
            shard = self.shards[self.random.integers(len(self.shards))]
            room = shard.shape[1] - self.crop_px + 1
            n, y, x = self.random.integers((len(shard), room, room))
            crop = shard[n, y : y + self.crop_px, x : x + self.crop_px]
            crops.append(crop[:, ::-1] if self.random.random() < 0.5 else crop)
        pictures = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return pictures.float() / 127.5 - 1.0


def cosine_learning_rate(step: int, *, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * done)))


def save_state(path: Path, state: dict[str, object]) -> None:
    """Write a training state so that a kill leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


@torch.no_grad()
def psnr(model: ThinAutoencoder, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit reconstructions, over pictures (N, 3, H, W)."""
    error = 0.0
    for x in pictures.split(8):
        made = model(x).clamp(-1, 1)
        made = ((made + 1) * 127.5).round() / 127.5 - 1
        error += float((made - x).square().mean()) / 4 * len(x)  # the range is 2, 2 squared is 4
    return -10 * math.log10(error / len(pictures))


def held_out_pictures(folder: Path, count: int = 64) -> Tensor:
    """An even choice of held-out pictures (count, 3, 256, 256) in [-1, 1] over all shards."""
    shards = [load_shard(path)[0] for path in shard_paths(folder)]
    chosen = np.concatenate([shard[:: -(-len(shards) * len(shard) // count)] for shard in shards])
    return torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def train(
    data: Path, state_path: Path, run: AutoencoderRun, *, held_out: Path,
    log: Callable[[str], None] = print, stop_after_seconds: float = math.inf,
) -> None:
    """Train or go on training; the state at ``state_path`` holds everything a resume needs."""
    torch.manual_seed(0)
    model = ThinAutoencoder().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = ThinAutoencoder()
    optimizer = torch.optim.AdamW(learned(model), lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    step = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        torch.manual_seed(step)
    else:
        model.start_from_components(Crops(data, run.crop_px, seed=0).batch(4096))
        average.load_state_dict(model.state_dict())
    crops, test = Crops(data, run.crop_px, seed=step), held_out_pictures(held_out)
    began = saved = time.monotonic()
    losses: list[float] = []
    while step < run.steps:
        rate = cosine_learning_rate(
            step, steps=run.steps, peak=run.learning_rate, warmup=run.warmup_steps
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        x = crops.batch(run.batch).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = reconstruction_loss(model, x, run)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learned(model), 1.0)
        optimizer.step()
        decay = min(run.ema, (step + 1) / (step + 10))
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.data.lerp_(fast.data, 1 - decay)
        losses.append(float(loss.detach()))
        step += 1
        now = time.monotonic()
        if now - saved > run.save_every_seconds or step == run.steps:
            saved = now
            save_state(state_path, {
                "model": model.state_dict(), "ema": average.state_dict(),
                "optimizer": optimizer.state_dict(), "step": step, "run": asdict(run),
            })
            line = {"step": step, "loss": round(float(np.mean(losses[-200:])), 4),
                    "psnr_db": round(psnr(average, test), 2), "seconds": round(now - began)}
            log(json.dumps(line))
            crops.refresh()
            if now - began > stop_after_seconds:
                break


@torch.no_grad()
def export(state_path: Path, folder: Path) -> ThinAutoencoder:
    """Write the averaged weights in half precision to ``folder``."""
    state = torch.load(state_path, weights_only=True)
    model = ThinAutoencoder()
    model.load_state_dict(state["ema"])
    model.half().save_pretrained(folder, safe_serialization=True)
    return model.float()  # type: ignore[no-any-return]
