"""Loading: from a card to modules that are ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError

from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.errors import RunError
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.builtin.scheduler import TrailingDDIMScheduler
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
    scheduler: TrailingDDIMScheduler


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
        unet = _whole(UNet2DConditionModel, weights / "unet", options)
        adapter = _whole(LinFusionAdapter, weights / "linfusion", options)
        autoencoder = _whole(ThinAutoencoder, weights / "vae", options)
        scheduler = TrailingDDIMScheduler.from_pretrained(
            weights / "scheduler", local_files_only=True
        )
        text = TextEncoder.load()
        mount(unet, adapter)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"the weights of model `{card.name}` in {weights} cannot be loaded: {error}; "
            "install the package again"
        ) from error
    for module in (unet, autoencoder):
        # Convolutions of this size run more than twice as fast with channels last on a CPU.
        module.to(memory_format=torch.channels_last)
        module.eval().requires_grad_(False)
    return Model(card, text, unet, autoencoder, scheduler)


def _whole(kind: type[Any], folder: Path, options: dict[str, Any]) -> Any:
    """A module with all its weights; diffusers alone would draw missing ones at random."""
    module, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    lost = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if lost:
        raise ValueError(
            f"{len(lost)} tensors of {folder.name} do not agree with its config.json, the first "
            f"is {lost[0]}"
        )
    return module
