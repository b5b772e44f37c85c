"""Loading: from what a user named to modules that are ready to run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor

from hirescli.attention.clear_mount import ClearAdapter
from hirescli.attention.clear_mount import mount as mount_clear
from hirescli.attention.clear_weights import read_weights, shapes_of
from hirescli.attention.linfusion import LinFusionAdapter, mount, unmount
from hirescli.attention.loading import load_adapter
from hirescli.errors import RequestError, RunError
from hirescli.models import components, hub, registry
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.models.builtin.scheduler import TrailingDDIMScheduler
from hirescli.models.builtin.text import TextEncoder
from hirescli.models.families import read_json
from hirescli.models.plugin_sources import PluginSource
from hirescli.models.quiet import quiet_libraries as quiet_libraries
from hirescli.models.safetensors_check import read_tensors
from hirescli.models.schedulers import make_scheduler
from hirescli.models.sources import AdapterSource, ModelSource, of_shipped
from hirescli.models.sums import check_sums
from hirescli.models.text import BuiltinText, ClipText, PromptEncoder
from hirescli.models.transformer_text import TransformerText
from hirescli.planning.card import Card

WEIGHTS = Path(__file__).parent / "builtin" / "weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Plugged:
    """What is plugged into a model; `hirescli.cascade.prepare` fills it.

    Attributes:
        sources: Where plug-ins were found, by what a recipe calls them.
        controlnets: That are loaded, by their place in a recipe and their source.
        images: The IP-Adapter and the pictures that `embeds` were made from; None: none is
            mounted.
        embeds: Of these pictures.
    """

    sources: dict[tuple[str, str | None, str | None], PluginSource] = field(default_factory=dict)
    controlnets: dict[tuple[int, PluginSource], Any] = field(default_factory=dict)
    images: tuple[Any, ...] | None = None
    embeds: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Model:
    """The modules of one model.

    Attributes:
        card: The facts about it.
        text: Tokenizers and text encoders.
        unet: The denoiser, with its own attention.
        autoencoder: Between pictures and latents.
        scheduler: With the noise schedule it was trained on.
        linfusion: Linear attention to mount on a UNet; None if none was asked for.
        source: Where it is from.
        clear: CLEAR's weights to mount on a transformer, by their published names, on the CPU in
            the denoiser's dtype; None if none were asked for.
        plugged: What a run has plugged in, kept from one image to the next.
    """

    card: Card
    text: PromptEncoder
    unet: Any
    autoencoder: Any
    scheduler: Any
    linfusion: LinFusionAdapter | None
    source: ModelSource
    clear: dict[str, Tensor] | None = field(default=None, compare=False, repr=False)
    plugged: Plugged = field(default_factory=Plugged, compare=False, repr=False)

    @property
    def adapter(self) -> AdapterSource | None:
        """Where the linear attention is from."""
        return self.source.adapter

    @contextmanager
    def attending(self, attention: str) -> Iterator[None]:
        """The denoiser attends as asked: "linear" with the adapter mounted, "full" without."""
        if attention == "full":
            yield
        elif self.card.is_transformer:
            with self._clear():
                yield
        else:
            with self._linfusion():
                yield

    @contextmanager
    def _linfusion(self) -> Iterator[None]:
        assert self.linfusion is not None, "an adapter is loaded where linear attention is wanted"
        mount(self.unet, self.linfusion)
        try:
            yield
        finally:
            unmount(self.unet)

    @contextmanager
    def _clear(self) -> Iterator[None]:
        """CLEAR on the denoiser, its scores scaled by the number of tokens, as published."""
        assert self.clear is not None, "an adapter is loaded where linear attention is wanted"
        assert self.adapter is not None
        mounted = _mounted_clear(self.adapter, self.unet)
        try:
            mounted.load(self.clear)
            mounted.settings.proportional = True
            yield
        finally:
            mounted.unmount()

    def scheduler_named(self, name: str, *, dynamic_shifting: bool = True) -> Any:
        """A fresh scheduler of the model's noise schedule, by its name in recipes.

        Args:
            name: Of the card.
            dynamic_shifting: Whether a schedule that shifts with the size may do so; else its
                own shift acts.
        """
        if self.card.family == "builtin":
            return type(self.scheduler).from_config(self.scheduler.config)
        config = components.scheduler_config(self.source)
        if not dynamic_shifting and config.get("use_dynamic_shifting"):
            config["use_dynamic_shifting"] = False
        return make_scheduler(name, config)


def load(
    model: ModelSource | Card, *, dtype: str, vae_dtype: str | None = None, linear: bool = True,
    weights: Path = WEIGHTS,
) -> Model:  # fmt: skip
    """Load a model's modules on the CPU, those of the hub from its cache, fetched if need be.

    Args:
        model: From `registry.find`, or a shipped card.
        dtype: "float32" or "bfloat16", of denoiser and text encoders; text states of the
            built-in model are made in float32.
        vae_dtype: Of the autoencoder; None: as `dtype`.
        linear: Whether linear attention is loaded too. The built-in model always has it.
        weights: Of the built-in model: a folder in diffusers layout, `linfusion/` in it.

    Raises:
        RequestError: If weights are missing, damaged or not of the model they are said to be.
        RunError: If those of the built-in model are, or a download fails.
    """
    source = _source(model)
    if source.card.family == "builtin":
        return _load_builtin(source, dtype, vae_dtype or dtype, weights)
    source = registry.download(source)
    if linear:
        source = registry.with_adapter(source)
    with quiet_libraries():
        return _load(source, DTYPES[dtype], DTYPES[vae_dtype or dtype], linear)


def _source(model: ModelSource | Card) -> ModelSource:
    if isinstance(model, Card):
        return of_shipped(model) if model.family == "builtin" else registry.find(model.name)
    if model.card.family != "builtin" and model.path is None:  # planned without weights
        found = registry.find(model.card.name)
        return replace(found, adapter=model.adapter)
    return model


def _load(source: ModelSource, dtype: torch.dtype, vae_dtype: torch.dtype, linear: bool) -> Model:
    _check_files(source)
    texts = ("text_encoder", "text_encoder_2", "text_encoder_3")
    dtypes = dict.fromkeys((source.card.denoiser_part, *texts), dtype)
    loader = components.load_single if source.kind == "file" else components.load_folder
    parts = loader(source, dtypes=dtypes | {"vae": vae_dtype})
    unet, autoencoder = parts.pop(source.card.denoiser_part), parts.pop("vae")
    assert source.configs is not None
    index = read_json(source.configs / "model_index.json")
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return Model(
        card=source.card,
        text=_text(source.card, parts, zeros),
        unet=unet,
        autoencoder=autoencoder,
        scheduler=make_scheduler(source.card.scheduler, components.scheduler_config(source)),
        linfusion=_linfusion(source, unet, dtype) if linear else None,
        source=source,
        clear=_clear(source, unet, dtype) if linear else None,
    )


def _text(card: Card, parts: dict[str, Any], zeros: bool) -> PromptEncoder:
    if card.is_transformer:
        return TransformerText(card.family, parts, tokens=card.text_tokens)
    return ClipText(card.family, parts, force_zeros=zeros)


def _check_files(source: ModelSource) -> None:
    """Check headers before a library sees a file, and hashes where they are known."""
    assert source.path is not None
    files = [source.path / name for _, held in source.weights for name in held]
    for path in files:
        read_tensors(path)
    if source.commit is not None:
        hub.verify(files)
    elif source.kind == "folder":
        try:
            check_sums(source.path)
        except (OSError, ValueError) as error:
            raise RequestError(f"{source.path} cannot be loaded: {error}") from error


def _linfusion(source: ModelSource, unet: Any, dtype: torch.dtype) -> LinFusionAdapter | None:
    """The adapter, which fits the denoiser; None for a transformer."""
    if source.card.is_transformer:
        return None
    assert source.adapter is not None
    assert source.adapter.path is not None
    adapter: Any = load_adapter(source.adapter.path)
    adapter.to(dtype).requires_grad_(False)
    try:
        mount(unet, adapter)
    except ValueError as error:
        raise RequestError(f"{source.adapter.name}: {error}") from error
    unmount(unet)
    made: LinFusionAdapter = adapter
    return made


def _clear(source: ModelSource, denoiser: Any, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """CLEAR's weights, which fit the denoiser; None for a UNet.

    They are read once: every stage mounts CLEAR, and takes it off again.
    """
    if not source.card.is_transformer:
        return None
    assert source.adapter is not None
    assert source.adapter.path is not None, "weights are found before a run"
    mounted = _mounted_clear(source.adapter, denoiser)
    try:
        tensors = read_weights(source.adapter.path, shapes_of(mounted))
    finally:
        mounted.unmount()
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def _mounted_clear(adapter: AdapterSource, transformer: Any) -> ClearAdapter:
    assert adapter.variant is not None
    window, down_factor = adapter.variant.window, adapter.variant.down_factor
    return mount_clear(transformer, window=window, down_factor=down_factor)


def _load_builtin(source: ModelSource, dtype: str, vae_dtype: str, weights: Path) -> Model:
    try:
        with quiet_libraries():
            check_sums(weights)
            return _builtin(source, DTYPES[dtype], DTYPES[vae_dtype], weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(
            f"the weights of model `{source.card.name}` in {weights} cannot be loaded: {error}; "
            "install the package again"
        ) from error


def _builtin(
    source: ModelSource, dtype: torch.dtype, vae_dtype: torch.dtype, weights: Path
) -> Model:
    unet = components.whole(UNet2DConditionModel, weights / "unet", dtype)
    adapter = components.whole(LinFusionAdapter, weights / "linfusion", dtype)
    autoencoder = components.whole(ThinAutoencoder, weights / "vae", vae_dtype)
    scheduler = TrailingDDIMScheduler.from_pretrained(weights / "scheduler", local_files_only=True)
    mount(unet, adapter)  # a file that does not fit is found here
    unmount(unet)
    # Convolutions of few channels run more than twice as fast with channels last on a CPU.
    autoencoder.to(memory_format=torch.channels_last)
    text = BuiltinText(TextEncoder.load(), dtype)
    return Model(source.card, text, unet, autoencoder, scheduler, adapter, source)
