"""Which family a model is of, and the card that its own configs give. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hirescli.errors import RequestError
from hirescli.models.safetensors_check import Tensors
from hirescli.planning.card import Card

CONFIGS = Path(__file__).parent / "configs"
_PIPELINES = {
    "StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl", "FluxPipeline": "flux",
    "StableDiffusion3Pipeline": "sd3",
}  # fmt: skip
SCHEDULER_NAMES = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-a",
    "DPMSolverMultistepScheduler": "dpm++",
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "flow-euler",
}
# What diffusers takes for a key that a config leaves out, where another value would compute
# otherwise. Older configs leave out more than newer ones.
UNET_DEFAULTS: dict[str, Any] = {
    "act_fn": "silu", "attention_type": "default", "center_input_sample": False,
    "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_dim": 1280, "downsample_padding": 1, "dual_cross_attention": False,
    "flip_sin_to_cos": True, "freq_shift": 0, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5,
    "norm_num_groups": 32, "only_cross_attention": False, "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional", "transformer_layers_per_block": 1,
    "upcast_attention": False, "use_linear_projection": False,
}  # fmt: skip
TRANSFORMER_DEFAULTS: dict[str, Any] = {
    "axes_dims_rope": [16, 56, 56], "dual_attention_layers": [], "guidance_embeds": False,
}  # fmt: skip
VAE_DEFAULTS: dict[str, Any] = {
    "act_fn": "silu", "in_channels": 3, "out_channels": 3, "mid_block_add_attention": True,
    "norm_num_groups": 32, "use_post_quant_conv": True, "use_quant_conv": True,
}  # fmt: skip
_WITHOUT_EFFECT = {  # on what a module computes for given weights, or on its trace
    "addition_embed_type_num_heads", "dropout", "force_upcast", "latents_mean", "latents_std",
    "sample_size", "scaling_factor", "shift_factor",
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A config.

    Raises:
        RequestError: If it is missing or no JSON object.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(f"{path} is missing; the model is not complete") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise RequestError(f"{path} cannot be read: it is no JSON object")
    return read


def _positive(value: object) -> bool:
    return type(value) is int and value > 0


def _widths(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_positive, value))


def _count(value: object) -> bool:
    return _positive(value) or _widths(value)


def _names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(n, str) for n in value)


def _factor(value: object) -> bool:
    return type(value) in (int, float) and 0 < float(str(value)) < math.inf


# What of a config a plan or a module is made from, and what it has to be.
_Check = tuple[Callable[[object], bool], str]
_POSITIVE: _Check = _positive, "a number of 1 or more"
_WIDTHS: _Check = _widths, "a list of numbers of 1 or more"
_COUNT: _Check = _count, "a number of 1 or more, or a list of such"
_NAMES: _Check = _names, "a list of names"
_CHECKS: dict[str, dict[str, _Check]] = {
    "unet": {
        "block_out_channels": _WIDTHS, "cross_attention_dim": _POSITIVE,
        "down_block_types": _NAMES, "up_block_types": _NAMES, "layers_per_block": _COUNT,
        "attention_head_dim": _COUNT, "norm_num_groups": _POSITIVE,
        "transformer_layers_per_block": (
            lambda value: _count(value) or isinstance(value, list),
            "a number of 1 or more, or a list",
        ),
    },
    "vae": {
        "block_out_channels": _WIDTHS, "latent_channels": _POSITIVE,
        "scaling_factor": (_factor, "a number above 0"), "layers_per_block": _POSITIVE,
        "norm_num_groups": _POSITIVE, "down_block_types": _NAMES, "up_block_types": _NAMES,
    },
    "transformer": {
        "attention_head_dim": _POSITIVE, "in_channels": _POSITIVE,
        "joint_attention_dim": _POSITIVE, "num_attention_heads": _POSITIVE,
        "num_layers": _POSITIVE, "pooled_projection_dim": _POSITIVE,
    },
    "text_encoder": {"max_position_embeddings": _POSITIVE, "hidden_size": _POSITIVE},
}  # fmt: skip
# Without which the libraries would take the sizes of another model.
_NEEDED = {
    "unet": ("block_out_channels", "cross_attention_dim"), "vae": ("block_out_channels",),
    "transformer": ("in_channels", "joint_attention_dim", "num_layers"),
}  # fmt: skip


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The config of a component, its sizes checked.

    Raises:
        RequestError: If it is missing, or a key is; names file and key.
    """
    path = folder / part / "config.json"
    config = read_json(path)
    for key in _NEEDED.get(part, ()):
        if config.get(key) is None:
            raise RequestError(f"{path}: {key} is missing; the file is not that of a model")
    for key, (fits, wanted) in _CHECKS[part].items():
        value = config.get(key)
        if value is not None and not fits(value):
            shown = json.dumps(value)[:60]
            raise RequestError(f"{path}: {key} is {shown}; it must be {wanted}")
    return config


def base_card_name(folder: Path) -> str:
    """The shipped card of the family of a folder in diffusers' layout.

    Raises:
        RequestError: If it is no such folder, or of a family that is not known.
    """
    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind not in _PIPELINES:
        raise RequestError(
            f"{folder} is of {kind}, which this version does not run; it runs folders of "
            f"{' and '.join(_PIPELINES)}"
        )
    if _PIPELINES[kind] in ("flux", "sd3"):
        return _transformer_card_name(folder, _PIPELINES[kind])
    unet = read_json(folder / "unet" / "config.json")
    if unet.get("in_channels", 4) != 4:
        raise RequestError(
            f"the denoiser of {folder} takes {unet['in_channels']} channels, as models for "
            "inpainting do; this version runs those of 4"
        )
    has_sizes = unet.get("addition_embed_type") == "text_time"
    if has_sizes != (_PIPELINES[kind] == "sdxl"):
        raise RequestError(
            f"{folder} says {kind}, but its unet/config.json is of another family "
            f"(addition_embed_type is {unet.get('addition_embed_type')})"
        )
    if has_sizes:
        return "sdxl"
    linear = unet.get("use_linear_projection", False)
    return "sd21" if linear or unet.get("cross_attention_dim") == 1024 else "sd15"


def _transformer_card_name(folder: Path, family: str) -> str:
    path = folder / "transformer" / "config.json"
    config = read_json(path)
    kinds = {"flux": "FluxTransformer2DModel", "sd3": "SD3Transformer2DModel"}
    if config.get("_class_name") != kinds[family]:
        raise RequestError(
            f"{path} is of {config.get('_class_name')}, a pipeline of this kind has a "
            f"{kinds[family]}"
        )
    if family == "sd3":
        return "sd35-medium" if config.get("dual_attention_layers") else "sd35-large"
    if config.get("out_channels") not in (None, config.get("in_channels")):
        raise RequestError(
            f"the denoiser of {folder} takes {config.get('in_channels')} channels and gives "
            f"{config.get('out_channels')}, as models for inpainting or control do; this version "
            "runs those that give what they take"
        )
    return "flux-dev" if config.get("guidance_embeds") else "flux-schnell"


def _transformer_facts(base: Card, folder: Path, factor: int) -> dict[str, Any]:
    """What a card says of the transformer of a folder."""
    config = read_config(folder, "transformer")
    facts: dict[str, Any] = {
        "text_channels": config["joint_attention_dim"], "text_tokens": base.text_tokens,
    }  # fmt: skip
    if base.family == "sd3":
        patch = config.get("patch_size") or 2
        positions = config.get("pos_embed_max_size") or 96  # as diffusers takes it
        facts |= {"multiple_px": factor * patch, "positions_px": factor * patch * positions}
        native_px = _side(folder, config.get("sample_size", 128), "transformer") * factor
    else:
        facts |= {"multiple_px": factor * base.packs}
        native_px = base.native_px
    least_px = facts["multiple_px"]
    return facts | {
        "native_px": native_px, "min_px": max(least_px, native_px // 4 // least_px * least_px),
    }  # fmt: skip


def adapted_card(base: Card, folder: Path, *, name: str, revision: str) -> Card:
    """The card of a family with the facts of a folder's own configs.

    Raises:
        RequestError: If a config is missing or wrong.
    """
    vae = read_config(folder, "vae")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    facts_of = _transformer_facts if base.is_transformer else _unet_facts
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json").get("_class_name")
    same = _is_like(base, folder, base.denoiser_part)
    changes = {
        "name": name,
        "title": f"A model of the shape of {base.title}" if same else f"Like {base.title}",
        "revision": revision,
        "licence": "unknown: see where the model came from",
        "notice": "",
        "hub_id": None,
        "latent_channels": vae.get("latent_channels") or 4,
        "vae_factor": factor,
        "vae_scaling": vae.get("scaling_factor") or base.vae_scaling,
        "scheduler": _scheduler_name(scheduler, base),
        **facts_of(base, folder, factor),
    }
    if not same:
        changes |= {"adapter": None, "adapter_id": None, "controls": ()}
        changes |= {"image_adapter_id": None, "image_encoder_id": None}
    try:
        return Card.model_validate(dict(base) | changes)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        )
        raise RequestError(f"the configs of {folder} do not make a model: {faults}") from error


def _unet_facts(base: Card, folder: Path, factor: int) -> dict[str, Any]:
    unet, text = read_config(folder, "unet"), read_config(folder, "text_encoder")
    sample_size = unet.get("sample_size", base.native_px // factor)
    native_px = _side(folder, sample_size, "unet") * factor
    return {
        "native_px": native_px,
        "multiple_px": factor,
        "min_px": max(factor, native_px // 2 // factor * factor),
        "text_tokens": text.get("max_position_embeddings") or base.text_tokens,
        "text_channels": unet["cross_attention_dim"],
    }


def _scheduler_name(kind: object, base: Card) -> str:
    name = SCHEDULER_NAMES.get(str(kind), base.scheduler)
    return name if name in base.schedulers else base.scheduler


def _side(folder: Path, sample_size: object, part: str) -> int:
    sizes = sample_size if isinstance(sample_size, list) else [sample_size]
    if not _widths(sizes) or max(sizes) < 2:
        path = folder / part / "config.json"
        raise RequestError(f"{path}: sample_size {sample_size} is no size of latents")
    return int(max(sizes))


_DEFAULTS = {"unet": UNET_DEFAULTS, "transformer": TRANSFORMER_DEFAULTS, "vae": VAE_DEFAULTS}


def _is_like(base: Card, folder: Path, part: str) -> bool:
    """Whether a component of a folder has the structure of the shipped card's."""
    own, shipped = (
        structure(read_json(where / part / "config.json"), _DEFAULTS[part])
        for where in (folder, CONFIGS / base.name)
    )
    return own == shipped


def structure(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config decides the modules: equal structures compute alike."""
    said = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and value is not None and key not in _WITHOUT_EFFECT
    }
    return {key: value for key, value in said.items() if defaults.get(key) != value}


def has_shipped_traces(base: Card, folder: Path) -> bool:
    """Whether a folder's denoiser and autoencoder are those of the shipped card."""
    return all(_is_like(base, folder, part) for part in (base.denoiser_part, "vae"))


def configs_digest(folder: Path, adapter: Iterable[object] | None) -> str:
    """SHA-256 of the configs that a trace depends on."""
    paths = [folder / part / "config.json" for part in ("unet", "transformer", "vae")]
    parts = [structure(read_json(path), {}) for path in paths if path.exists()]
    text = json.dumps([*parts, list(adapter or ())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def parameters_of(files: Mapping[str, Iterable[Tensors]]) -> tuple[tuple[str, int], ...]:
    """Numbers in the weights of every component."""
    return tuple(
        (name, sum(math.prod(shape) for file in held for shape in file.shapes.values()))
        for name, held in files.items()
    )
