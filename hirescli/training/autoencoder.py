"""Training of the thin autoencoder: reconstruction on crops, resumable, with its gate.

The encoder is a projection on principal components, set once from pictures; only the decoder
learns. The loss is L1 on the picture plus L1 on its Laplacian pyramid, which weighs edges and
grain against flat colour. A little noise on the latents makes the decoder forgiving of a
denoiser's errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from hirescli.errors import RequestError
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.training import trainer
from hirescli.training.dataset import finished_shards, load_shard
from hirescli.training.trainer import Schedule, State, load_weights, read_state

if TYPE_CHECKING:
    from collections.abc import Callable

_COMPONENT_CROPS = 4096


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun(Schedule):
    """Settings of a training run."""

    steps: int = 1_900
    batch: int = 8
    crop_px: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    latent_noise: float = 0.05


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
        """Take up shards that were not there before."""
        self.shards = [load_shard(path)[0] for path in finished_shards(self.folder)]

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
    shards = [load_shard(path)[0] for path in finished_shards(folder)]
    chosen = np.concatenate([shard[:: -(-len(shards) * len(shard) // count)] for shard in shards])
    return torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1.0


class AutoencoderTraining:
    """One training of the autoencoder: fresh, with principal components, or resumed.

    Args:
        data: The folder of rendered shards.
        state_path: The state's file.
        run: The settings.
        held_out: The folder of rendered shards for the gate, which training never sees.

    Raises:
        RequestError: If a folder holds no shards, or the file is no state of this model.
    """

    def __init__(
        self, data: Path, state_path: Path, run: AutoencoderRun, *, held_out: Path
    ) -> None:
        torch.manual_seed(0)
        self.run, self.test = run, held_out_pictures(held_out)
        self.model, self.averaged = ThinAutoencoder(), ThinAutoencoder()
        self.model.to(memory_format=torch.channels_last)
        fresh = not state_path.exists()
        self.state = State(state_path, self.model, learned(self.model), run, weight_decay=0.0)
        if fresh:
            pictures = Crops(data, run.crop_px, seed=0).batch(_COMPONENT_CROPS)
            self.model.start_from_components(pictures)
            self.state.start_average()
        self.crops = Crops(data, run.crop_px, seed=self.state.step)

    def loss(self) -> Tensor:
        """The loss of the next batch."""
        x = self.crops.batch(self.run.batch).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            return reconstruction_loss(self.model, x, self.run)

    def report(self) -> dict[str, float]:
        """The gate's figure: reconstruction of held-out pictures with the averaged weights."""
        self.averaged.load_state_dict(self.state.average)
        return {"psnr_db": round(psnr(self.averaged, self.test), 2)}

    def refresh(self) -> None:
        """Take up shards that were not there before."""
        self.crops.refresh()


def train(
    data: Path,
    state_path: Path,
    run: AutoencoderRun,
    *,
    held_out: Path,
    log: Callable[[str], None] = print,
    stop_after_seconds: float = math.inf,
) -> None:
    """Train or go on training; the state at ``state_path`` holds everything a resume needs.

    Raises:
        RequestError: As `AutoencoderTraining`.
    """
    training = AutoencoderTraining(data, state_path, run, held_out=held_out)
    trainer.train(training, log=log, stop_after_seconds=stop_after_seconds)


def load(path: Path) -> ThinAutoencoder:
    """The averaged autoencoder of a training state, or an exported one from its folder; float32.

    Raises:
        RequestError: If there is none.
    """
    if path.is_dir():
        return _exported(path)
    model: ThinAutoencoder = ThinAutoencoder()
    load_weights(model, read_state(path)["ema"], path)
    return model


def _exported(folder: Path) -> ThinAutoencoder:
    try:
        model: ThinAutoencoder = ThinAutoencoder.from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RequestError(
            f"folder {folder} holds no autoencoder of the built-in model ({error}); name the "
            "`vae` folder of an export, or the STATE file of an autoencoder's training"
        ) from error
    return model


def export(state_path: Path, folder: Path) -> ThinAutoencoder:
    """Write the averaged weights in half precision to ``folder``.

    Raises:
        RequestError: If the file is no state of an autoencoder.
    """
    model = load(state_path)
    model.half().save_pretrained(folder, safe_serialization=True)  # type: ignore[no-untyped-call]
    return model.float()  # type: ignore[no-any-return,no-untyped-call]
