"""How well an autoencoder gives pictures back, and how fast it decodes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hirescli.errors import RequestError
from hirescli.training.autoencoder import decibels, load
from hirescli.training.dataset import Pictures

_BATCH = 8
_REPEAT = 3


@dataclass(frozen=True)
class Reconstruction:
    """Of one set of pictures, by 8-bit reconstructions; equal ones have 100 dB.

    Attributes:
        count: Of pictures.
        psnr_db: Of the mean square error over all pictures.
        mean_psnr_db: The mean of each picture's own.
        worst_psnr_db: The lowest of a picture.
    """

    count: int
    psnr_db: float
    mean_psnr_db: float
    worst_psnr_db: float


@torch.no_grad()
def reconstruction(model: Any, pictures: Pictures) -> Reconstruction:
    """Encode and decode pictures (N, 256, 256, 3) uint8 and compare."""
    errors: list[float] = []
    for start in range(0, len(pictures), _BATCH):
        batch = np.array(pictures[start : start + _BATCH])
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float()
        made = decode(model, encode(model, x / 127.5 - 1))
        made = ((made.clamp(-1, 1) + 1) * 127.5).round()
        errors += (made - x).square().mean((1, 2, 3)).tolist()
    each = [decibels(error, peak=255) for error in errors]
    return Reconstruction(
        count=len(errors),
        psnr_db=decibels(sum(errors) / len(errors), peak=255),
        mean_psnr_db=sum(each) / len(each),
        worst_psnr_db=min(each),
    )


@torch.no_grad()
def decode_seconds(model: Any, side_px: int, dtype: torch.dtype) -> float:
    """Seconds per megapixel of decoding a square, the best of three after one to warm up."""
    # Not the model's own method, which warns of what it does not do here.
    torch.nn.Module.to(model, dtype)
    z = encode(model, torch.rand(1, 3, side_px, side_px).to(dtype) * 2 - 1)
    seconds = []
    for _ in range(1 + _REPEAT):
        began = time.perf_counter()
        decode(model, z)
        seconds.append(time.perf_counter() - began)
    torch.nn.Module.to(model, torch.float32)
    return min(seconds[1:]) / (side_px * side_px / 1e6)


def encode(model: Any, x: Tensor) -> Tensor:
    """Latents of pictures (B, 3, H, W) in [-1, 1]; of a distribution its mode."""
    made = model.encode(x)
    latents: Tensor = made.latents if hasattr(made, "latents") else made.latent_dist.mode()
    return latents


def decode(model: Any, z: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), about [-1, 1], of latents."""
    sample: Tensor = model.decode(z).sample
    return sample


def load_autoencoder(path: Path | None) -> Any:
    """An autoencoder in float32: the built-in one, one in diffusers layout, or a training's.

    Args:
        path: A folder with the autoencoder's config.json, or the STATE file of a training of
            the built-in one; None: the built-in one that comes with hires.

    Raises:
        RequestError: If there is none.
    """
    from hirescli.models.builtin.autoencoder import ThinAutoencoder

    if path is None:
        path = builtin_folder()
    if not path.is_dir() or _kind(path) == ThinAutoencoder.__name__:
        return load(path).eval()
    from diffusers import AutoencoderKL, AutoencoderTiny

    for known in (AutoencoderKL, AutoencoderTiny):
        if _kind(path) == known.__name__:
            return _pretrained(known, path)
    raise RequestError(
        f"{path} holds {_kind(path) or 'no config.json of a model'}; give the folder of an "
        "AutoencoderKL, an AutoencoderTiny or the built-in autoencoder, often called vae"
    )


def builtin_folder() -> Path:
    """The weights of the autoencoder that comes with hires."""
    from hirescli.models import builtin

    return Path(str(builtin.__file__)).parent / "weights" / "vae"


def _kind(folder: Path) -> str | None:
    """The class that a folder in diffusers layout says it holds."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pretrained(known: Any, folder: Path) -> Any:
    from safetensors import SafetensorError

    try:
        model = known.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise RequestError(f"autoencoder {folder} cannot be loaded: {error}") from error
    return model.eval()
