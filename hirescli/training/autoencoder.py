"""Training of the thin autoencoder: reconstruction on crops, resumable, with its gate.

The encoder is a projection on principal components, set once from pictures; only the decoder
learns, from renders and, where there are some, a minority of photographs. The loss is L1 on the
picture plus L1 on its Laplacian pyramid, which weighs edges and grain against flat colour. A
little noise on the latents makes the decoder forgiving of a denoiser's errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.training import trainer
from hirescli.training.dataset import (
    KINDS,
    PHOTO,
    PICTURE_PX,
    Pictures,
    finished_shards,
    load_shard,
    shard_paths,
)
from hirescli.training.trainer import (
    Schedule,
    State,
    compile_on_gpu,
    load_exported,
    load_weights,
    read_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_COMPONENT_CROPS = 4096
_SHOWN = 8  # held-out pictures on the sample sheet, each beside its reconstruction


@dataclass(frozen=True, kw_only=True)
class AutoencoderRun(Schedule):
    """Settings of a training run; `photo_share` of the crops are of photographs, if any are."""

    steps: int = 1_900
    batch: int = 8
    crop_px: int = 128
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    latent_noise: float = 0.05
    photo_share: float = 0.2


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
    """Random crops of rendered shards, and of photographs for a share of them.

    Shards that appear while training are picked up.
    """

    def __init__(self, folder: Path, run: AutoencoderRun, seed: int) -> None:
        self.folder, self.run = folder, run
        self.random = np.random.default_rng(seed)
        self.renders: list[Pictures] = []
        self.photographs: list[Pictures] = []
        self.refresh()

    def refresh(self) -> None:
        """Take up shards that were not there before."""
        self.renders = [load_shard(path)[0] for path in finished_shards(self.folder)]
        self.photographs = [load_shard(path)[0] for path in shard_paths(self.folder, [PHOTO])]

    def batch(self, count: int) -> Tensor:
        """``count`` crops (count, 3, crop, crop) in [-1, 1], mirrored at random."""
        return _signed(np.stack([self._crop() for _ in range(count)]))

    def _crop(self) -> Pictures:
        photographed = self.photographs and self.random.random() < self.run.photo_share
        shards = self.photographs if photographed else self.renders
        shard = shards[self.random.integers(len(shards))]
        side = self.run.crop_px
        room = PICTURE_PX - side + 1
        n, y, x = self.random.integers((len(shard), room, room))
        crop: Pictures = shard[n, y : y + side, x : x + side]
        return crop[:, ::-1] if self.random.random() < 0.5 else crop


def _signed(pictures: Pictures) -> Tensor:
    """8-bit pictures (N, H, W, 3) as float32 (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@torch.no_grad()
def psnr(model: ThinAutoencoder, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio of 8-bit reconstructions of pictures (N, 3, H, W), in dB.

    At most 100 dB, which equal pictures have.
    """
    error = 0.0
    for x in pictures.split(8):
        made = model(x).clamp(-1, 1)
        made = ((made + 1) * 127.5).round() / 127.5 - 1
        error += float((made - x).square().mean()) * len(x)
    return decibels(error / len(pictures), peak=2)


def decibels(error: float, *, peak: float) -> float:
    """PSNR of a mean square error of samples whose range is `peak`; at most 100, of none too."""
    return -10 * math.log10(max(error / peak**2, 1e-10))


def held_out_pictures(folder: Path, kinds: Sequence[str] = KINDS, count: int = 64) -> Tensor:
    """An even choice of held-out pictures (N, 3, 256, 256) in [-1, 1] over all shards.

    N is about `count`: each shard gives every so-manieth of its pictures, its first in any case.

    Raises:
        RequestError: If the folder holds no shards of these kinds.
    """
    shards = [load_shard(path)[0] for path in finished_shards(folder, kinds)]
    chosen = np.concatenate([shard[:: -(-len(shards) * len(shard) // count)] for shard in shards])
    return _signed(chosen)


class AutoencoderTraining:
    """One training of the autoencoder: fresh, with principal components, or resumed.

    Args:
        data: The folder of rendered shards.
        state_path: The state's file.
        run: The settings.
        held_out: The folder of rendered shards for the gate, which training never sees; with
            shards of photographs in it, those are measured too.

    Raises:
        RequestError: If a folder holds no shards, or the file is no state of this model.
    """

    def __init__(
        self, data: Path, state_path: Path, run: AutoencoderRun, *, held_out: Path
    ) -> None:
        torch.manual_seed(0)
        self.run = run
        self.tests = {"psnr_db": held_out_pictures(held_out)}
        if shard_paths(held_out, [PHOTO]):
            self.tests["photo_psnr_db"] = held_out_pictures(held_out, [PHOTO])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.averaged = ThinAutoencoder(), ThinAutoencoder()
        self.model.to(self.device, memory_format=torch.channels_last)
        fresh = not state_path.exists()
        self.state = State(state_path, self.model, learned(self.model), run, weight_decay=0.0)
        if fresh:
            pictures = Crops(data, run, seed=0).batch(_COMPONENT_CROPS)
            self.model.start_from_components(pictures.to(self.device))
            self.state.start_average()
        self.crops = Crops(data, run, seed=self.state.step)
        compile_on_gpu(self.model.decoder, self.device)

    def loss(self) -> Tensor:
        """The loss of the next batch."""
        x = self.crops.batch(self.run.batch).to(self.device)
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            return reconstruction_loss(self.model, x, self.run)

    def report(self) -> dict[str, float]:
        """The gate's figure: reconstruction of held-out pictures with the averaged weights."""
        self.averaged.load_state_dict(self.state.average)
        return {name: round(psnr(self.averaged, x), 2) for name, x in self.tests.items()}

    @torch.no_grad()
    def sheet(self) -> Tensor:
        """Held-out pictures, each followed by its reconstruction with the averaged weights."""
        self.averaged.load_state_dict(self.state.average)
        shown = torch.cat([x[:: -(-len(x) // _SHOWN)] for x in self.tests.values()])
        return torch.stack([shown, self.averaged(shown)], 1).flatten(0, 1)

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
    if trainer.is_at_end(state_path, run):
        load(state_path)  # refuses what is another model's
        log(trainer.line_at_end(run))
        return
    training = AutoencoderTraining(data, state_path, run, held_out=held_out)
    trainer.train(training, log=log, stop_after_seconds=stop_after_seconds)


def load(path: Path) -> ThinAutoencoder:
    """The averaged autoencoder of a training state, or an exported one from its folder; float32.

    Raises:
        RequestError: If there is none.
    """
    if path.is_dir():
        return load_exported(_as_exported, path, kind="ThinAutoencoder", part="vae")
    model: ThinAutoencoder = ThinAutoencoder()
    load_weights(model, read_state(path)["ema"], path)
    return model


def _as_exported(config: Mapping[str, Any]) -> ThinAutoencoder:
    widths = {name: tuple(config[name]) for name in ("decoder_channels", "decoder_blocks")}
    model: ThinAutoencoder = ThinAutoencoder(**widths)
    return model


def export(model: ThinAutoencoder, folder: Path) -> None:
    """Write an autoencoder, which becomes one of half precision, to ``folder``."""
    model.half().save_pretrained(folder, safe_serialization=True)  # type: ignore[no-untyped-call]
