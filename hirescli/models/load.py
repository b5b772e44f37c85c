"""Loading: from a card to modules that are ready to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.errors import RunError
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.builtin.scheduler import TrailingDDIMScheduler
from hirescli.models.builtin.text import TextEncoder
from hirescli.models.sums import check_sums

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
        RunError: If weights are missing, damaged or not in the safetensors format: a pickle
            could run code.
    """
    try:
        with quiet_libraries():
            check_sums(weights)
            return _load(card, dtype=dtype, weights=weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"the weights of model `{card.name}` in {weights} cannot be loaded: {error}; "
            "install the package again"
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own reports and bars away, and leave their settings as they were."""
    loggings: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggings]
    for each in loggings:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, (verbosity, bars) in zip(loggings, before, strict=True):
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()


def _load(card: Card, *, dtype: str, weights: Path) -> Model:
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "torch_dtype": DTYPES[dtype],
    }
    unet = _whole(UNet2DConditionModel, weights / "unet", options)
    adapter = _whole(LinFusionAdapter, weights / "linfusion", options)
    autoencoder = _whole(ThinAutoencoder, weights / "vae", options)
    scheduler = TrailingDDIMScheduler.from_pretrained(weights / "scheduler", local_files_only=True)
    text = TextEncoder.load()
    mount(unet, adapter)
    # Convolutions of few channels run more than twice as fast with channels last on a CPU.
    autoencoder.to(memory_format=torch.channels_last)
    for module in (unet, autoencoder):
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
