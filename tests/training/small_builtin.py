"""A folder as `hires train export` writes it, with a small denoiser of fixed random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from hirescli.models.builtin.autoencoder import ThinAutoencoder


def builtin_folder(path: Path) -> Path:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=16, out_channels=16, block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=384, attention_head_dim=2,
    )  # fmt: skip
    unet.save_pretrained(path / "unet")
    autoencoder = ThinAutoencoder(decoder_channels=(4, 4, 4), decoder_blocks=(0, 0, 0))
    autoencoder.save_pretrained(path / "vae")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
        clip_sample=False, set_alpha_to_one=True, steps_offset=0,
    )  # fmt: skip
    scheduler.save_pretrained(path / "scheduler")
    return path


def shards(folder: Path, *kinds: str, count: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    for number, kind in enumerate(kinds):
        random = np.random.default_rng(number)
        coarse = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        path = folder / f"{kind}-00000.npy"
        path.with_suffix(".json").write_text(json.dumps([["a lake", "water"]] * count))
        np.save(path, coarse.repeat(8, 1).repeat(8, 2))
    return folder
