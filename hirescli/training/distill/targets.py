"""The model that is distilled: loaded; and its text and pictures as it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from hirescli.models import components, registry
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.builtin.scheduler import TrailingDDIMScheduler
from hirescli.models.builtin.text import TextEncoder
from hirescli.models.load import WEIGHTS, Model, load
from hirescli.models.quiet import quiet_libraries
from hirescli.models.safetensors_check import read_tensors
from hirescli.models.sources import ModelSource, local_revision, of_shipped
from hirescli.models.text import BuiltinText
from hirescli.models.transformer_text import TransformerText
from hirescli.training.distill.calls import DenoiserCall, FluxCall, SD3Call, UNetCall
from hirescli.training.distill.schedule import FlowSchedule, NoiseSchedule, Schedule
from hirescli.training.distill.settings import DType

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Target:
    """A model with its own attentions in place.

    Attributes:
        model: Its modules, on the CPU; `free` lets some of them go.
        revision: Of the weights: other weights have another.
        scheduler: The config of its noise schedule.
    """

    model: Model
    revision: str
    scheduler: dict[str, Any]

    @property
    def denoiser(self) -> Any:
        """A `UNet2DConditionModel`, `FluxTransformer2DModel` or `SD3Transformer2DModel`."""
        return self.model.unet

    @property
    def family(self) -> str:
        """One of "builtin", "sd", "sdxl", "flux" and "sd3"."""
        return self.model.card.family

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return self.model.card.vae_factor

    def schedule(self) -> Schedule:
        """The noise that it learned on.

        Raises:
            RequestError: If it predicts what training does not know.
        """
        flows = self.model.card.is_transformer
        return (FlowSchedule if flows else NoiseSchedule).of(self.scheduler)

    def call(self, side_px: int) -> DenoiserCall:
        """Its denoiser as it is called for squares of this side."""
        if self.family == "flux":
            return FluxCall(self.denoiser, self.model.card.guidance_scale)
        if self.family == "sd3":
            return SD3Call(self.denoiser)
        return UNetCall(self.denoiser, self.denoiser.dtype, self.time_ids(side_px))

    def time_ids(self, side_px: int) -> Tensor | None:
        """What SDXL is told about sizes when it draws a square of this side: (6,)."""
        if self.family != "sdxl":
            return None
        return torch.tensor([side_px, side_px, 0, 0, side_px, side_px], dtype=torch.float32)

    def to(self, device: torch.device) -> None:
        """Move all that is left."""
        parts = [self.denoiser, self.model.autoencoder, *_encoders(self.model)]
        for part in parts:
            if part is not None:
                part.to(device)

    def free_encoders(self) -> None:
        """Let autoencoder and text encoders go: what they make is on the disk."""
        self.model.text.free()
        object.__setattr__(self.model, "autoencoder", None)

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """Latents (B, C, h, w), as the denoiser reads them, of pictures (B, 3, H, W) in [-1, 1].

        Of an autoencoder that gives a distribution its middle.
        """
        autoencoder = self.model.autoencoder
        device = next(autoencoder.parameters()).device
        made = autoencoder.encode(pictures.to(device))
        latents = made.latent_dist.mode() if hasattr(made, "latent_dist") else made.latents
        shift = autoencoder.config.get("shift_factor") or 0.0
        scaled: Tensor = (latents - shift) * autoencoder.config["scaling_factor"]
        return scaled.float().cpu()

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Text states (B, tokens, channels) and, but for "sd" and "builtin", pooled ones
        (B, channels).
        """
        text: Any = self.model.text
        if isinstance(text, TransformerText):
            both = text.states(texts)
            return both[0].float().cpu(), both[1].float().cpu()
        if isinstance(text, BuiltinText):
            return text.encoder.encode(texts), None
        with quiet_libraries():
            made = text.pipeline().encode_prompt(
                prompt=list(texts),
                device=text.components["text_encoder"].device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        pooled = made[2].float().cpu() if self.family == "sdxl" else None
        return made[0].float().cpu(), pooled

    def no_states(self) -> tuple[Tensor, Tensor | None]:
        """As `states` of one text: what it reads in place of one, and guidance leads away from."""
        if isinstance(self.model.text, TransformerText):
            return self.states([""])
        made = self.model.text.encode("", "")
        pooled = made.get("negative_pooled_prompt_embeds")
        return (
            made["negative_prompt_embeds"].float().cpu(),
            None if pooled is None else pooled.float().cpu(),
        )


@dataclass(frozen=True)
class Found:
    """A model that can be distilled, not loaded yet.

    Attributes:
        name: What a user calls it.
        family: As of `Target`.
        native_px: Side of the pictures that the denoiser learned on.
        multiple_px: Of which the side of a picture must be a multiple.
        source: Of a model in diffusers' layout; None: the built-in's parts.
        folder: Of the built-in's parts.
    """

    name: str
    family: str
    native_px: int
    multiple_px: int
    source: ModelSource | None = None
    folder: Path = WEIGHTS

    def load(self, dtype: DType) -> Target:
        """Load it, its denoiser in `dtype`; the autoencoder stays in float32.

        So do text encoders but those of transformers, which are large.

        Raises:
            RequestError: If weights are missing, damaged or of another architecture.
        """
        if self.source is None:
            return _load_builtin(self.folder, dtype)
        card, config = self.source.card, components.scheduler_config(self.source)
        first: DType = dtype if card.is_transformer else "float32"
        model = load(self.source, dtype=first, vae_dtype="float32", linear=False)
        with quiet_libraries():  # which warn of modules to be kept in float32, of which none are
            model.unet.to(_DTYPES[dtype])
        return Target(model, card.revision, config)


def _load_builtin(folder: Path, dtype: DType) -> Target:
    with quiet_libraries():
        unet = components.whole(UNet2DConditionModel, folder / "unet", _DTYPES[dtype])
        autoencoder = components.whole(ThinAutoencoder, folder / "vae", torch.float32)
        scheduler: Any = TrailingDDIMScheduler.from_pretrained(
            folder / "scheduler", local_files_only=True
        )
        encoder = TextEncoder.load()
    unet.to(memory_format=torch.channels_last)
    text = BuiltinText(encoder, torch.float32)
    source = of_shipped(registry.find_card("builtin"))
    model = Model(source.card, text, unet, autoencoder, scheduler, None, source)
    files = [read_tensors(path) for path in sorted((folder / "unet").glob("*.safetensors"))]
    return Target(model, local_revision((), files), dict(scheduler.config))


def _encoders(model: Model) -> list[Any]:
    parts = getattr(model.text, "components", {})
    return [part for name, part in parts.items() if name.startswith("text_encoder")]
