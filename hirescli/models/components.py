"""The modules of one model, each loaded whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
)

from hirescli.errors import RequestError
from hirescli.models.clip_tokenizer import packaged_tokenizer
from hirescli.models.families import read_json

if TYPE_CHECKING:
    from hirescli.models.sources import ModelSource

DENOISERS: dict[str, Any] = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "FluxTransformer2DModel": FluxTransformer2DModel,
    "SD3Transformer2DModel": SD3Transformer2DModel,
}
# Numbers that old files carry and that are made anew: positions 0, 1, 2, ...
_MADE_ANEW = ("position_ids",)
_ORIGINALS: dict[str, tuple[Any, Callable[..., dict[str, Tensor]]]] = {
    "unet": (UNet2DConditionModel, convert_ldm_unet_checkpoint),
    "vae": (AutoencoderKL, convert_ldm_vae_checkpoint),
}
_TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
_FAMILY_ENCODERS: dict[str, dict[str, Any]] = {
    "flux": {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel},
    "sd3": {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    },
}
# Without whose numbers a config would be guessed, or a module would hold no weights.
_FAULTS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    AttributeError,
    SafetensorError,
)


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
        kind = _kind(name, folder, source.card.family)
        variant = "fp16" if files[0].endswith(".fp16.safetensors") else None
        made[name] = whole(kind, folder, dtypes[name], variant=variant)
    for name in _tokenizers(made):
        made[name] = _folder_tokenizer(source.path / name)
    return made


def _kind(name: str, folder: Path, family: str) -> Any:
    """The class of a component."""
    if name == "vae":
        return AutoencoderKL
    if name in ("unet", "transformer"):
        return DENOISERS[
            read_json(folder / "config.json").get("_class_name", "UNet2DConditionModel")
        ]
    return _FAMILY_ENCODERS.get(family, _TEXT_ENCODERS)[name]


def load_single(source: ModelSource, *, dtypes: dict[str, torch.dtype]) -> dict[str, Any]:
    """The same from a single .safetensors file, configs and tokenizer from the package.

    Raises:
        RequestError: As `load_folder`.
    """
    assert source.path is not None
    assert source.configs is not None
    made: dict[str, Any] = {}
    with naming(source.path):
        tensors = load_file(source.path)
        for name in (part for part, _ in source.card.parameters if part in dtypes):
            # The converters take what they have read out of the table.
            build = _original_text if name in _TEXT_ENCODERS else _original_module
            made[name] = build(name, dict(tensors), source.configs, dtypes[name], source.path)
    for name, module in made.items():
        _check_filled(module, f"{source.path}, component {name}")
    for name in _tokenizers(made):
        made[name] = packaged_tokenizer(source.configs / name)
    return made


def _original_module(
    name: str, tensors: dict[str, Tensor], configs: Path, dtype: torch.dtype, file: Path
) -> nn.Module:
    """Denoiser or autoencoder from tensors under their original names."""
    kind, convert = _ORIGINALS[name]
    config = read_json(configs / name / "config.json")
    with torch.device("meta"):
        module: nn.Module = kind.from_config(config)
    states = convert(tensors, config=config)
    wanted = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    given = {key: tuple(tensor.shape) for key, tensor in states.items()}
    _check_same(wanted, given, f"{file}, component {name},")
    module.load_state_dict({k: t.to(dtype) for k, t in states.items()}, assign=True)
    return module


def _check_same(
    wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]], where: str
) -> None:
    wrong = sorted(key for key in wanted if given.get(key) != wanted[key])
    if wrong:
        first = wrong[0]
        raise RequestError(
            f"{len(wrong)} tensors of {where} are missing or of other shapes, the first is "
            f"{first}: {given.get(first, 'missing')} where {wanted[first]} is wanted; the file is "
            "not of the whole model, or of another one"
        )


def _original_text(
    name: str, tensors: dict[str, Tensor], configs: Path, dtype: torch.dtype, file: Path
) -> nn.Module:
    """Text encoder from tensors under their original names."""
    made: nn.Module = create_diffusers_clip_model_from_ldm(
        _TEXT_ENCODERS[name], checkpoint=tensors, config=str(configs), subfolder=name,
        local_files_only=True,
    )  # fmt: skip
    _check_filled(made, f"{file}, component {name}")  # before it is converted
    return made.to(dtype)


def _tokenizers(made: dict[str, Any]) -> list[str]:
    encoders = [name for name in made if name.startswith("text_encoder")]
    return [name.replace("text_encoder", "tokenizer") for name in encoders]


def whole(kind: type[Any], folder: Path, dtype: torch.dtype, variant: str | None = None) -> Any:
    """A module with all its weights; the libraries alone would draw missing ones at random.

    Raises:
        RequestError: If tensors are missing, too many or of other shapes, or a file is damaged.
    """
    if hasattr(kind, "load_config"):  # of diffusers, which raises where shapes differ
        options: dict[str, Any] = {"torch_dtype": dtype}
    else:  # of transformers, which reports them elsewhere
        options = {"dtype": dtype, "ignore_mismatched_sizes": True}
    with naming(folder):
        module, info = kind.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, use_safetensors=True,
            variant=variant, **options,
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
    if "merges.txt" not in names and "tokenizer.json" in names:  # of T5: pieces, not pairs
        with naming(folder):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True)
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
