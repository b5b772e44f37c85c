"""Small models in the formats that people have: folders of diffusers' layout, files, plug-ins.

All weights are random and the same at every call. Shapes are those of the families (levels, two
text encoders, size conditioning), a few channels wide.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from hirescli.attention.linfusion import LinFusionAdapter

TEXT_CHANNELS, IMAGE_CHANNELS, TEXT_TOKENS = 32, 16, 77
T5_CHANNELS = 80
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SD_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32, 32),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": _SD_UNET | {"attention_head_dim": 2, "cross_attention_dim": TEXT_CHANNELS},
    "sd21": _SD_UNET
    | {
        "sample_size": 12,
        "attention_head_dim": (2, 4, 4, 4),
        "cross_attention_dim": TEXT_CHANNELS + 8,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": _SD_UNET
    | {
        "sample_size": 16,
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 2 * TEXT_CHANNELS + 8,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + TEXT_CHANNELS,
    },
}


def sd15_folder(path: Path) -> Path:
    """Stable Diffusion 1.5: predicts noise, one text encoder, PNDM."""
    _text(path, "", CLIPTextModel, TEXT_CHANNELS, pad="<|endoftext|>", act="quick_gelu")
    scheduler = PNDMScheduler(**NOISE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    return _folder(path, "sd15", "StableDiffusionPipeline", scheduler)


def sd21_folder(path: Path) -> Path:
    """Stable Diffusion 2.1: predicts v, wider text states, padded with "!"."""
    _text(path, "", CLIPTextModel, TEXT_CHANNELS + 8, pad="!", act="gelu")
    scheduler = DDIMScheduler(
        **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        prediction_type="v_prediction",
    )  # fmt: skip
    return _folder(path, "sd21", "StableDiffusionPipeline", scheduler)


def sdxl_folder(path: Path) -> Path:
    """SDXL: two text encoders, the second with pooled states; size conditioning; Euler."""
    _text(path, "", CLIPTextModel, TEXT_CHANNELS, pad="<|endoftext|>", act="quick_gelu")
    _text(path, "_2", CLIPTextModelWithProjection, TEXT_CHANNELS + 8, pad="!", act="gelu")
    scheduler = EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1)
    return _folder(path, "sdxl", "StableDiffusionXLPipeline", scheduler)


def flux_folder(path: Path, *, guided: bool = True) -> Path:
    """FLUX: pooled states of CLIP, states of T5; FLUX.1 [schnell] is the one without guidance."""
    _text(path, "", CLIPTextModel, TEXT_CHANNELS, pad="<|endoftext|>", act="quick_gelu")
    _t5(path, "_2")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guided)
    transformer = small_flux(guided)
    encoders = {"text_encoder": "CLIPTextModel", "text_encoder_2": "T5EncoderModel"}
    return _transformer_folder(path, "FluxPipeline", transformer, scheduler, encoders)


def sd3_folder(path: Path) -> Path:
    """Stable Diffusion 3.5: two of CLIP, T5, a picture's own attention in the first block."""
    kind = CLIPTextModelWithProjection
    _text(path, "", kind, TEXT_CHANNELS, pad="<|endoftext|>", act="quick_gelu")
    _text(path, "_2", kind, TEXT_CHANNELS + 8, pad="!", act="gelu")
    _t5(path, "_3")
    clip = dict.fromkeys(("text_encoder", "text_encoder_2"), kind.__name__)
    encoders = {**clip, "text_encoder_3": "T5EncoderModel"}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _transformer_folder(path, "StableDiffusion3Pipeline", small_sd3(), scheduler, encoders)


def small_flux(guided: bool = True) -> FluxTransformer2DModel:
    """The denoiser of FLUX's folder."""
    return randomised(FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=T5_CHANNELS,
        pooled_projection_dim=TEXT_CHANNELS, guidance_embeds=guided, axes_dims_rope=(2, 2, 4),
    ), 1)  # fmt: skip


def small_sd3() -> SD3Transformer2DModel:
    """The denoiser of Stable Diffusion 3.5's folder."""
    return randomised(SD3Transformer2DModel(
        sample_size=16, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=T5_CHANNELS, caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT_CHANNELS, pos_embed_max_size=12,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    ), 1)  # fmt: skip


FOLDERS = {"sd15": sd15_folder, "sd21": sd21_folder, "sdxl": sdxl_folder}
TRANSFORMERS = {"flux": flux_folder, "sd3": sd3_folder}


def small_unet(family: str) -> UNet2DConditionModel:
    """The denoiser of a family's folder."""
    return randomised(UNet2DConditionModel(**UNETS[family]), 1)


def small_autoencoder(family: str) -> AutoencoderKL:
    """The autoencoder of a family's folder."""
    xl = {"scaling_factor": 0.13025, "force_upcast": True} if family == "sdxl" else {}
    if family == "transformer":
        xl = {
            "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
            "use_post_quant_conv": False,
        }  # fmt: skip
    return randomised(
        AutoencoderKL(
            block_out_channels=(16, 16, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=8 * UNETS.get(family, {"sample_size": 16})["sample_size"],
            **xl,  # type: ignore[arg-type]
        ),
        2,
    )


def controlnet_folder(path: Path, family: str) -> Path:
    """A ControlNet of a family's denoiser; what it adds is not zero."""
    made = ControlNetModel.from_unet(
        small_unet(family), conditioning_embedding_out_channels=(4, 8, 8, 16)
    )
    randomised(made, 3).save_pretrained(path)
    return path


def flux_controlnet_folder(
    path: Path, *, double: int = 2, single: int = 1, guided: bool = True, seed: int = 3
) -> Path:
    """A ControlNet of FLUX's folder; more blocks than the transformer's are read by none."""
    config = dict(small_flux().config) | {"guidance_embeds": guided}
    shared = {k: config[k] for k in (
        "in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
        "pooled_projection_dim", "axes_dims_rope", "guidance_embeds",
    )}  # fmt: skip
    made = FluxControlNetModel(**shared, num_layers=double, num_single_layers=single)
    randomised(made, seed).save_pretrained(path)
    return path


def linfusion_folder(path: Path, unet_folder: Path, *, mid_dim_scale: int = 4) -> Path:
    """A LinFusion adapter in the published format for the denoiser in a folder."""
    unet = UNet2DConditionModel.from_pretrained(unet_folder, local_files_only=True)
    adapter = LinFusionAdapter.for_unet(unet, mid_dim_scale=mid_dim_scale)
    randomised(adapter, 4).save_pretrained(path)
    return path


def lora_file(path: Path, family: str, *, seed: int = 5, text: bool = True) -> Path:
    """A LoRA of rank 2 on attentions and feed-forwards, and on the first text encoder."""
    ends = (".to_q", ".to_k", ".to_v", ".to_out.0", ".ff.net.2")
    layers = [("unet." + n, m) for n, m in small_unet(family).named_modules() if n.endswith(ends)]
    width = TEXT_CHANNELS + (8 if family == "sd21" else 0)
    states: dict[str, Tensor] = {}
    for i, (name, layer) in enumerate(layers):
        assert isinstance(layer, nn.Linear)
        states |= _lora_pair(name, layer.out_features, layer.in_features, seed + i)
    for i in range(2 if text else 0):
        name = f"text_encoder.text_model.encoder.layers.{i}.self_attn.q_proj"
        states |= _lora_pair(name, width, width, seed + 1000 + i)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(states, path, metadata={"format": "pt"})
    return path


def transformer_lora(path: Path, family: str, *, seed: int = 5, text: bool = True) -> Path:
    """The same for FLUX or SD3, on every kind of layer in their blocks."""
    module = small_flux() if family == "flux" else small_sd3()
    ends = (".to_q", ".to_k", ".to_v", ".to_out.0", ".add_v_proj", ".ff.net.2", ".proj_mlp")
    layers = [("transformer." + n, m) for n, m in module.named_modules() if n.endswith(ends)]
    states: dict[str, Tensor] = {}
    for i, (name, layer) in enumerate(layers):
        assert isinstance(layer, nn.Linear)
        states |= _lora_pair(name, layer.out_features, layer.in_features, seed + i)
    if text:
        name = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
        states |= _lora_pair(name, TEXT_CHANNELS, TEXT_CHANNELS, seed + 1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(states, path, metadata={"format": "pt"})
    return path


def _lora_pair(name: str, rows: int, columns: int, seed: int) -> dict[str, Tensor]:
    return {
        f"{name}.lora_A.weight": _draw((2, columns), 2 * seed) / columns**0.5,
        f"{name}.lora_B.weight": _draw((rows, 2), 2 * seed + 1) / 2,
    }


def ip_adapter_folder(path: Path, family: str) -> Path:
    """An IP-Adapter as published: safetensors beside its image encoder."""
    unet: Any = small_unet(family)
    width = UNETS[family]["cross_attention_dim"]
    folder = path / ("sdxl_models" if family == "sdxl" else "models")
    states = {
        "image_proj.proj.weight": _draw((4 * width, IMAGE_CHANNELS), 1) / IMAGE_CHANNELS**0.5,
        "image_proj.proj.bias": _draw((4 * width,), 2),
        "image_proj.norm.weight": 1 + _draw((width,), 3) / 5,
        "image_proj.norm.bias": _draw((width,), 4) / 5,
    }
    # Numbered 1, 3, 5 ...: the even ones are the self-attentions.
    crossings = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(crossings):
        rows = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for j, key in enumerate(("to_k_ip", "to_v_ip")):
            projection = _draw((rows, width), 10 + 2 * i + j) / width**0.5
            states[f"ip_adapter.{2 * i + 1}.{key}.weight"] = projection
    folder.mkdir(parents=True, exist_ok=True)
    save_file(states, folder / f"ip-adapter_{'sdxl' if family == 'sdxl' else 'sd15'}.safetensors")
    image_encoder_folder(folder / "image_encoder")
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(path / "feature_extractor")
    return path


def flux_ip_adapter_folder(path: Path, *, blocks: int = 1) -> Path:
    """The same for FLUX's folder, with the published names."""
    width, rows = T5_CHANNELS, small_flux().inner_dim
    states = {
        "ip_adapter_proj_model.proj.weight": _draw((4 * width, IMAGE_CHANNELS), 1) / 4,
        "ip_adapter_proj_model.proj.bias": _draw((4 * width,), 2),
        "ip_adapter_proj_model.norm.weight": 1 + _draw((width,), 3) / 5,
        "ip_adapter_proj_model.norm.bias": _draw((width,), 4) / 5,
    }
    for i in range(2 * blocks):
        layer = f"double_blocks.{i // 2}.processor.ip_adapter_double_stream_{'kv'[i % 2]}_proj"
        states[f"{layer}.weight"] = _draw((rows, width), 10 + i) / width**0.5
        states[f"{layer}.bias"] = _draw((rows,), 50 + i) / 5
    path.mkdir(parents=True, exist_ok=True)
    save_file(states, path / "ip_adapter.safetensors")
    image_encoder_folder(path / "image_encoder")
    return path


def image_encoder_folder(path: Path, *, channels: int = IMAGE_CHANNELS) -> Path:
    """The image encoder of an IP-Adapter."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=32, patch_size=8, projection_dim=channels,
    )  # fmt: skip
    randomised(CLIPVisionModelWithProjection(vision), 6).save_pretrained(path)
    return path


@torch.no_grad()
def randomised(module: Any, seed: int) -> Any:
    """The module with all parameters drawn, none zero; layers keep the variance."""
    generator = torch.Generator().manual_seed(seed)
    for owner in module.modules():
        for key, parameter in owner.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (key == "weight"))
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)


def _draw(size: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _folder(path: Path, family: str, pipeline: str, scheduler: Any) -> Path:
    small_unet(family).save_pretrained(path / "unet")
    small_autoencoder(family).save_pretrained(path / "vae")
    scheduler.save_pretrained(path / "scheduler")
    index = {
        "_class_name": pipeline,
        "_diffusers_version": "0.38.0",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if family == "sdxl":
        index |= {
            "force_zeros_for_empty_prompt": True,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
        }
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    (path / "model_index.json").write_text(json.dumps(index, indent=2))
    return path


def _transformer_folder(
    path: Path, pipeline: str, transformer: Any, scheduler: Any, encoders: dict[str, str]
) -> Path:
    transformer.save_pretrained(path / "transformer")
    small_autoencoder("transformer").save_pretrained(path / "vae")
    scheduler.save_pretrained(path / "scheduler")
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "_diffusers_version": "0.38.0",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "transformer": ["diffusers", type(transformer).__name__],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, kind in encoders.items():
        tokenizer = "T5TokenizerFast" if kind.startswith("T5") else "CLIPTokenizer"
        index[name] = ["transformers", kind]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", tokenizer]
    (path / "model_index.json").write_text(json.dumps(index, indent=2))
    return path


def _t5(path: Path, suffix: str) -> None:
    """T5's encoder and its tokenizer, of printable characters."""
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    tokenizer = T5Tokenizer(vocab=[*marks, *letters], extra_ids=0)
    tokenizer.save_pretrained(path / f"tokenizer{suffix}")
    config = T5Config(
        vocab_size=len(marks) + len(letters), d_model=T5_CHANNELS, d_kv=16, d_ff=32, num_layers=1,
        num_heads=2, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    randomised(T5EncoderModel(config), 8).save_pretrained(path / f"text_encoder{suffix}")


def _text(path: Path, suffix: str, kind: Any, width: int, *, pad: str, act: str) -> None:
    """A text encoder and its tokenizer, the files as the hub has them."""
    vocabulary, merges = _vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=TEXT_TOKENS,
        projection_dim=TEXT_CHANNELS, hidden_act=act, bos_token_id=0, eos_token_id=2,
        pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    randomised(kind(config), 7 + len(suffix)).save_pretrained(path / f"text_encoder{suffix}")
    folder = path / f"tokenizer{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": pad}
    tokens = {**marks, "unk_token": "<|endoftext|>", "model_max_length": TEXT_TOKENS}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", **tokens})
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({**marks, "unk_token": "<|endoftext|>"})
    )


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Printable characters, alone and ending a word, a few merges, and the two marks last."""
    letters = [chr(code) for code in range(33, 127)]
    merges = [("t", "h"), ("th", "e</w>"), ("a", "t</w>"), ("c", "at</w>"), ("s", "ea</w>")]
    words = [*letters, *(letter + "</w>" for letter in letters), "ea</w>"]
    words += ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, [("e", "a</w>"), *merges]
