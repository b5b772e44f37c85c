"""The modules of one Stable Diffusion model, each loaded whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hirescli.errors import RequestError
from hirescli.models.clip_tokenizer import packaged_tokenizer

if TYPE_CHECKING:
    from hirescli.models.sources import ModelSource

# Numbers that old files carry and that are made anew: positions 0, 1, 2, ...
_MADE_ANEW = ("position_ids",)
_TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
# Without whose numbers a config would be guessed, or a module would hold no weights.
_FAULTS = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)


def load_folder(source: ModelSource, *, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    """The modules and tokenizers of a folder in diffusers' layout.

    Args:
        source: With a folder as path.
        dtypes: Of every component.

    Raises:
        RequestError: If one cannot be loaded whole; names file and first wrong tensor.
    """
    assert source.path is not None
    made: dict[str, Any] = {}
    for name, files in source.weights:
        folder = source.path / name
        kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}.get(name)
        kind = kind or _TEXT_ENCODERS[name]
        variant = "fp16" if files[0].endswith(".fp16.safetensors") else None
        made[name] = whole(kind, folder, dtypes[name], variant=variant)
    for name in _tokenizers(made):
        made[name] = _folder_tokenizer(source.path / name)
    return made


def load_single(source: ModelSource, *, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    """The same from a single .safetensors file, configs and tokenizer from the package.

    Raises:
        RequestError: As `load_folder`.
    """
    assert source.path is not None
    assert source.configs is not None
    configs = str(source.configs)
    made: dict[str, Any] = {}
    with naming(source.path):
        tensors = load_file(source.path)
        loaders: dict[str, Callable[..., Any]] = {
            "unet": UNet2DConditionModel.from_single_file,
            "vae": AutoencoderKL.from_single_file,
        }
        for name in (part for part, _ in source.card.parameters if part in dtypes):
            options = {"subfolder": name, "torch_dtype": dtypes[name], "local_files_only": True}
            if name in loaders:
                # The loader takes what it has read out of the table.
                made[name] = loaders[name](dict(tensors), config=configs, **options)
            else:
                made[name] = create_diffusers_clip_model_from_ldm(
                    _TEXT_ENCODERS[name], checkpoint=dict(tensors), config=configs, **options
                )
    for name, module in made.items():
        _check_filled(module, f"{source.path}, component {name}")
    for name in _tokenizers(made):
        made[name] = packaged_tokenizer(source.configs / name)
    return made


def _tokenizers(made: dict[str, Any]) -> list[str]:
    encoders = [name for name in made if name.startswith("text_encoder")]
    return [name.replace("text_encoder", "tokenizer") for name in encoders]


def whole(kind: type[Any], folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """A module with all its weights; the libraries alone would draw missing ones at random.

    Raises:
        RequestError: If tensors are missing, too many or of other shapes, or a file is damaged.
    """
    key = "torch_dtype" if hasattr(kind, "load_config") else "dtype"  # diffusers, transformers
    with naming(folder):
        module, info = kind.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, use_safetensors=True,
            variant=variant, **{key: dtype},
        )  # fmt: skip
    info = info if isinstance(info, dict) else vars(info)
    missing, unexpected = (
        sorted(k for k in info.get(which) or () if not str(k).endswith(_MADE_ANEW))
        for which in ("missing_keys", "unexpected_keys")
    )
    shapes = sorted(str(each[0]) for each in info.get("mismatched_keys") or ())
    for keys, what in (
        (missing, "are missing"), (shapes, "have other shapes"), (unexpected, "are too many")
    ):  # fmt: skip
        if keys:
            raise RequestError(
                f"{len(keys)} tensors of {folder} {what} by its config.json, the first is "
                f"{keys[0]}; weights and config are not of one model"
            )
    _check_filled(module, str(folder))
    return module.eval().requires_grad_(False)


def _check_filled(module: nn.Module, where: str) -> None:
    empty = [name for name, tensor in module.named_parameters() if tensor.is_meta]
    if empty:
        raise RequestError(
            f"{len(empty)} tensors of {where} are missing, the first is {empty[0]}; the file is "
            "not of the whole model"
        )
    module.eval().requires_grad_(False)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say which file or folder a library could not load."""
    try:
        yield
    except RequestError:
        raise
    except _FAULTS as error:
        text = " ".join(str(error).split())
        raise RequestError(f"{path} cannot be loaded: {text}") from error


def _folder_tokenizer(folder: Path) -> Any:
    names = {path.name for path in folder.glob("*")}
    if not names >= {"vocab.json", "merges.txt"} and "tokenizer.json" not in names:
        raise RequestError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json")
    with naming(folder):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.model_max_length > 10**6:  # a tokenizer that was given no length says 10^30
        tokenizer.model_max_length = 77
    return tokenizer


def scheduler_config(source: ModelSource) -> dict[str, Any]:
    """The config of the scheduler that the model was published with, changes of its file in it."""
    assert source.configs is not None
    path = source.configs / "scheduler" / "scheduler_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config | dict(source.scheduler_changes)
