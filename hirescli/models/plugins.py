"""What plugs into a model through diffusers: LoRAs, ControlNets, IP-Adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor, nn

from hirescli.attention.linfusion import LinearAttention, LinFusionAdapter, mount, unmount
from hirescli.errors import RequestError
from hirescli.models import hub
from hirescli.models.components import naming, whole
from hirescli.models.families import read_json
from hirescli.models.fits import check_controlnet, check_image_adapter, check_lora
from hirescli.models.quiet import quiet_libraries
from hirescli.models.safetensors_check import Tensors, read_tensors
from hirescli.models.text import ClipText

if TYPE_CHECKING:
    from hirescli.models.load import Model

_CONTROLNET = "diffusion_pytorch_model"
_HINT = "controlnet_cond_embedding."
_MOST_SIDE_PX = 1024  # of a picture that an image encoder reads; it shrinks it to about 224


def apply_loras(model: Model, loras: Sequence[tuple[Path, float]]) -> None:
    """Add LoRAs to a model's weights: denoiser, linear attention, text encoders.

    They are fused, so that the model computes as without any. Linear attention gets what the
    attention it stands for gets, as where a LoRA is loaded with an adapter mounted.

    Args:
        model: Its text encoders not freed yet. Changed in place.
        loras: Files and how strongly each acts.

    Raises:
        RequestError: If a file is missing, damaged or made for another family.
    """
    for path, _ in loras:
        check_lora(read_tensors(path), _linears(model.unet), model.card)
    for path, scale in loras:
        with quiet_libraries(), naming(path):
            _apply_lora(model, path, scale)


def _linears(unet: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that a LoRA can change, by module."""
    kinds = (nn.Linear, nn.Conv2d)
    return {n: tuple(m.weight.shape) for n, m in unet.named_modules() if isinstance(m, kinds)}


def _apply_lora(model: Model, path: Path, scale: float) -> None:
    assert isinstance(model.text, ClipText)
    pipeline, unet = model.text.pipeline(unet=model.unet), model.unet
    mounted = any(isinstance(module, LinearAttention) for module in unet.modules())
    unmount(unet)
    pipeline.load_lora_weights(
        str(path.parent), weight_name=path.name, local_files_only=True, use_safetensors=True,
        adapter_name="lora",
    )  # fmt: skip
    if model.linfusion is not None:
        _add_to_linear(unet, model.linfusion, scale)
    named = {"unet": unet, **model.text.components}
    components = [
        name for name, module in named.items()
        if isinstance(module, nn.Module) and _lora_layers(module)
    ]  # fmt: skip
    pipeline.fuse_lora(components=components, lora_scale=scale, safe_fusing=True)
    pipeline.unload_lora_weights()
    for module in (unet, *(named[name] for name in components)):
        module.eval().requires_grad_(False)
    if mounted and model.linfusion is not None:
        mount(unet, model.linfusion)


def _lora_layers(module: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in module.named_modules() if isinstance(m, LoraLayer)}


@torch.no_grad()
def _add_to_linear(unet: nn.Module, adapter: LinFusionAdapter, scale: float) -> None:
    """Add to the adapter's projections what a LoRA adds to those of the attention it replaces."""
    layers = _lora_layers(unet)
    for entry, module in zip(adapter.entries, adapter.children(), strict=True):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            layer = layers.get(f"{entry.module_name}.{name}")
            if layer is not None:
                weight = module.get_submodule(name).weight
                assert isinstance(weight, Tensor)
                change = layer.get_delta_weight("lora").float() * scale
                weight.copy_(weight.float() + change.to(weight.device))


def load_controlnet(model: Model, kind: str) -> Any:
    """A ControlNet for a model, in the dtype of its denoiser, on the CPU.

    Args:
        model: It is for.
        kind: A name that the model's card knows, such as "canny", or a local folder, a
            .safetensors file, or a hub id.

    Raises:
        RequestError: If it is missing, damaged, or made for another family.
        RunError: If a download fails.
    """
    named = dict(model.card.controls).get(kind, kind)
    path, dtype = Path(named).expanduser(), model.unet.dtype
    with quiet_libraries():
        if path.is_file() or path.suffix == ".safetensors":
            return _single_controlnet(model, read_tensors(path), dtype)
        folder = path if path.is_dir() else _fetched(named, kind, model)
        return _controlnet_folder(model, folder, dtype)


def _fetched(hub_id: str, kind: str, model: Model) -> Path:
    if not hub.HUB_ID.fullmatch(hub_id):
        known = ", ".join(name for name, _ in model.card.controls) or "none"
        raise RequestError(
            f'control "{kind}" is not known: model `{model.card.name}` knows {known}; or name a '
            "ControlNet's folder, .safetensors file or hub id"
        )
    snapshot = hub.resolve(hub_id, None)
    files = hub.choose_weights(snapshot.files, "", _CONTROLNET, hub_id)
    folder = hub.fetch(snapshot, ["config.json", *files])
    hub.remember(snapshot)
    hub.verify(folder / name for name in files)
    return folder


def _controlnet_folder(model: Model, folder: Path, dtype: torch.dtype) -> Any:
    config = read_json(folder / "config.json")
    check_controlnet(folder, config, dict(model.unet.config), model.card)
    names = [each.name for each in folder.iterdir()]
    files = hub.choose_weights(names, "", _CONTROLNET, str(folder))
    for name in files:
        read_tensors(folder / name)
    variant = "fp16" if files[0].endswith(".fp16.safetensors") else None
    return whole(ControlNetModel, folder, dtype, variant=variant)


def _single_controlnet(model: Model, tensors: Tensors, dtype: torch.dtype) -> Any:
    """From one file: its config is that of the denoiser's copy, which a ControlNet is."""
    widths = [shape[-1] for n, shape in tensors.shapes.items() if n.endswith("attn2.to_k.weight")]
    if not widths:
        raise RequestError(f"{tensors.path} is no ControlNet: it has no cross-attention to text")
    said = {"_class_name": "ControlNetModel", "cross_attention_dim": widths[0]}
    sizes = any(
        name.startswith("add_embedding.") or ".label_emb." in name for name in tensors.shapes
    )
    said |= {"addition_embed_type": "text_time" if sizes else None}
    check_controlnet(tensors.path, said, dict(model.unet.config), model.card)
    hint = [
        tensors.shapes[f"{_HINT}{name}.weight"][0]
        for name in ("conv_in", "blocks.1", "blocks.3", "blocks.5")
        if f"{_HINT}{name}.weight" in tensors.shapes
    ]
    with torch.device("meta"):
        copy = ControlNetModel.from_unet(
            model.unet, load_weights_from_unet=False,
            **({"conditioning_embedding_out_channels": tuple(hint)} if len(hint) == 4 else {}),
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, naming(tensors.path):
        copy.save_config(folder)
        made = ControlNetModel.from_single_file(
            str(tensors.path), config=folder, torch_dtype=dtype, local_files_only=True
        )
    empty = [name for name, tensor in made.named_parameters() if tensor.is_meta]
    if empty:
        raise RequestError(
            f"{len(empty)} tensors of {tensors.path} are missing, the first is {empty[0]}; it is "
            f"no ControlNet for model `{model.card.name}`"
        )
    return made.eval().requires_grad_(False)


@torch.no_grad()
def image_embeds(
    model: Model, source: str | None, pictures: Sequence[tuple[Path, float]]
) -> list[Tensor]:
    """Mount an IP-Adapter on a model's denoiser, and encode the pictures that say what to draw.

    Args:
        model: Its denoiser is changed: its cross-attention reads pictures from then on.
        source: A .safetensors file beside the folder ``image_encoder``, on this machine or,
            as "owner/name/folder/file.safetensors", on the hub; None: the card's.
        pictures: Files and how strongly each acts.

    Returns:
        For each picture (2, 1, channels), or (2, 1, tokens, channels): for no picture, then for
        it, as ``ip_adapter_image_embeds`` has them under guidance; without guidance the
        pipelines take the second half alone.

    Raises:
        RequestError: If it is missing, damaged, or made for another family, or a picture cannot
            be read.
        RunError: If a download fails.
    """
    assert isinstance(model.text, ClipText)
    file = _image_adapter(model, source)
    check_image_adapter(read_tensors(file), dict(model.unet.config), model.card)
    encoder_files = [each.name for each in (file.parent / "image_encoder").glob("*")]
    for name in hub.choose_weights(encoder_files, "", "model", str(file.parent / "image_encoder")):
        read_tensors(file.parent / "image_encoder" / name)
    images = [_opened(path) for path, _ in pictures]
    pipeline = model.text.pipeline(unet=model.unet)
    with quiet_libraries(), naming(file):
        pipeline.load_ip_adapter(
            str(file.parent), subfolder="", weight_name=[file.name] * len(images),
            image_encoder_folder="image_encoder", local_files_only=True,
        )  # fmt: skip
        pipeline.set_ip_adapter_scale([scale for _, scale in pictures])
        pipeline.image_encoder.to(dtype=model.unet.dtype)
        embeds = pipeline.prepare_ip_adapter_image_embeds(images, None, "cpu", 1, True)
    model.unet.eval().requires_grad_(False)
    return list(embeds)


def unmount_image_adapter(model: Model) -> None:
    """Take out again what `image_embeds` has mounted."""
    assert isinstance(model.text, ClipText)
    with quiet_libraries():
        model.text.pipeline(unet=model.unet).unload_ip_adapter()


def _image_adapter(model: Model, source: str | None) -> Path:
    named = source or model.card.image_adapter_id
    if named is None:
        raise RequestError(
            f"no IP-Adapter is known for model `{model.card.name}`; name one with --image-adapter"
        )
    path = Path(named).expanduser()
    if path.exists():
        return _only_file(path) if path.is_dir() else path
    owner, name, *inside = named.split("/")
    hub_id = f"{owner}/{name}"
    if not inside or not named.endswith(".safetensors") or not hub.HUB_ID.fullmatch(hub_id):
        raise RequestError(
            f"IP-Adapter {named} does not exist; name a .safetensors file, or "
            "owner/name/folder/file.safetensors on the hub"
        )
    snapshot = hub.resolve(hub_id, None)
    file, folder = "/".join(inside), "/".join([*inside[:-1], "image_encoder"])
    weights = hub.choose_weights(snapshot.files, folder, "model", hub_id)
    root = hub.fetch(snapshot, [file, f"{folder}/config.json", *weights])
    hub.remember(snapshot)
    hub.verify(root / each for each in (file, *weights))
    return root / file


def _only_file(folder: Path) -> Path:
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*models/*.safetensors"))
    if len(found) != 1:
        raise RequestError(
            f"{folder} has {len(found)} .safetensors files; name the IP-Adapter's file itself"
        )
    return found[0]


def _opened(path: Path) -> Image.Image:
    """A picture, no larger than an image encoder has use for."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (_MOST_SIDE_PX, _MOST_SIDE_PX))
            image.thumbnail((_MOST_SIDE_PX, _MOST_SIDE_PX))
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RequestError(f"picture {path} cannot be read: {error}") from error
