"""Loading: from a card to modules that are ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import SafetensorError

from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.errors import RunError
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.builtin.text import TextEncoder

if TYPE_CHECKING:
    from hirescli.planning.card import Card

WEIGHTS = Path(__file__).parent / "builtin" / "weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Model:
    """The modules of one model, with its linear attention mounted.

    Attributes:
        card: The facts about it.
        text: Tokenizer and text encoder.
        unet: The denoiser.
        autoencoder: Between pictures and latents.
        scheduler: With the noise schedule it was trained on.
    """

    card: Card
    text: TextEncoder
    unet: UNet2DConditionModel
    autoencoder: ThinAutoencoder
    scheduler: DDIMScheduler


def load(card: Card, *, dtype: str, weights: Path = WEIGHTS) -> Model:
    """Load the built-in model's modules; no network.

    Args:
        card: The card of the model.
        dtype: "float32" or "bfloat16", of denoiser and autoencoder; text states are float32.
        weights: A folder in diffusers layout, `linfusion/` in it.

    Raises:
        RunError: If weights are missing or damaged.
    """
    options: dict[str, Any] = {"local_files_only": True, "torch_dtype": DTYPES[dtype]}
    try:
        unet = UNet2DConditionModel.from_pretrained(weights / "unet", **options)
        adapter = LinFusionAdapter.from_pretrained(weights / "linfusion", **options)
        autoencoder = ThinAutoencoder.from_pretrained(weights / "vae", **options)
        scheduler = DDIMScheduler.from_pretrained(weights / "scheduler", local_files_only=True)
        text = TextEncoder.load()
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"the weights of model `{card.name}` in {weights} cannot be loaded: {error}; "
            "install the package again"
        ) from error
    mount(unet, adapter)
    for module in (unet, autoencoder):
        # Convolutions of this size run more than twice as fast with channels last on a CPU.
        module.to(memory_format=torch.channels_last)
        module.eval().requires_grad_(False)
    return Model(card, text, unet, autoencoder, scheduler)
