"""Tiny components in the shapes of the real ones, with weights that let a mistake show.

Freshly made diffusers modules hide mistakes: their norms scale by one, their attention is
flat, a ControlNet's last layers are zero. Here every weight is drawn anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from hirescli.attention.clear_mount import mount as mount_clear
from hirescli.attention.linfusion import LinFusionAdapter, mount
from hirescli.models.flux_image_traces import mount_pictures

Size = tuple[int, int]  # height, width
Inputs = dict[str, Any]
Outputs = tuple[Tensor, ...]
ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Odd, even, wide, tall; at (8, 5) the deepest of four levels is one single point.
LATENT_SIZES: tuple[Size, ...] = ((33, 21), (8, 5), (9, 14))
PIXEL_SIZES: tuple[Size, ...] = ((72, 40), (67, 45), (40, 88))
TEXT_TOKENS, TEXT_CHANNELS, POOLED_CHANNELS, IMAGE_CHANNELS = 7, 24, 16, 12


def draw(size: tuple[int, ...], seed: int) -> Tensor:
    """Noise from a generator of its own."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def picture(batch: int, channels: int, size: Size, seed: int) -> Tensor:
    """Noise whose mean and deviation change from top to bottom, so that no band is typical."""
    y = torch.linspace(0, 1, size[0])[:, None]
    return draw((batch, channels, *size), seed) * (0.3 + y) + (2 * y - 1)


@torch.no_grad()
def randomised(module: ModuleT, seed: int) -> ModuleT:
    """The module with all weights drawn: variance kept by layers, queries and keys sharp."""
    generator = torch.Generator().manual_seed(seed)
    for name, owner in module.named_modules():
        sharp = 1.2 if name.endswith(("to_q", "to_k")) else 1.0
        for key, parameter in owner.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if key == "bias":
                parameter.copy_(0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(noise * sharp * parameter[0].numel() ** -0.5)
    return module.eval().requires_grad_(False)


def sd15_unet(**changes: Any) -> UNet2DConditionModel:
    """Stable Diffusion 1.5: four levels, heads of growing width, convolutions as projections."""
    config = {
        "sample_size": 8,
        "block_out_channels": (16, 24, 32, 32),
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_CHANNELS,
        "norm_num_groups": 4,
    }
    return randomised(UNet2DConditionModel(**(config | changes)), 1)


def sd21_unet() -> UNet2DConditionModel:
    """Stable Diffusion 2.1: heads of equal width, linear projections."""
    return sd15_unet(
        attention_head_dim=[2, 3, 4, 4], use_linear_projection=True, upcast_attention=True
    )


def sdxl_unet() -> UNet2DConditionModel:
    """SDXL: three levels, deep transformers, size and pooled text beside the time."""
    return sd15_unet(
        block_out_channels=(16, 24, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=[2, 3, 4],
        transformer_layers_per_block=[1, 2, 3],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + POOLED_CHANNELS,
    )


def controlnet(seed: int = 2) -> ControlNetModel:
    """A ControlNet of `sd15_unet`; its zero convolutions are not zero."""
    module = ControlNetModel.from_unet(
        sd15_unet(),
        conditioning_embedding_out_channels=(4, 8, 8, 16),
        load_weights_from_unet=False,
    )
    return randomised(module, seed)


def autoencoder(**changes: Any) -> AutoencoderKL:
    """Stable Diffusion's autoencoder: factor 8, four channels, attention in the middle."""
    config = {
        "block_out_channels": (8, 12, 16, 16),
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return randomised(AutoencoderKL(**(config | changes)), 3)


def flux_autoencoder() -> AutoencoderKL:
    """The autoencoder of SD3 and FLUX: sixteen channels, no quant convolutions."""
    return autoencoder(
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def patched_autoencoder(channels: int) -> AutoencoderKL:
    """The same with few channels: small transformers read patches of 2x2 latents."""
    return autoencoder(
        latent_channels=channels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def tiny_autoencoder() -> AutoencoderTiny:
    """TAESD: factor 8, rectified, no norms."""
    module = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 2, 1),
        num_decoder_blocks=(2, 1, 1, 1),
    )
    return randomised(module, 4)


def linfusion_unet() -> UNet2DConditionModel:
    """`sd15_unet` with LinFusion's linear attention; its shifts are not zero."""
    unet = sd15_unet()
    mount(unet, randomised(LinFusionAdapter.for_unet(unet, mid_dim_scale=4), 5))
    return unet


def ip_adapter_unet() -> UNet2DConditionModel:
    """`sd15_unet` with an IP-Adapter for pictures of four tokens each."""
    unet: Any = sd15_unet()
    crossings = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    widths = [
        unet.get_submodule(name.removesuffix(".processor")).to_q.out_features for name in crossings
    ]
    projections = {  # counted 1, 3, 5: between them lie the self-attentions
        f"{2 * i + 1}.{key}.weight": draw((width, TEXT_CHANNELS), 2 * i + j) / 5
        for i, width in enumerate(widths)
        for j, key in enumerate(("to_k_ip", "to_v_ip"))
    }
    image_projection = {
        "proj.weight": draw((4 * TEXT_CHANNELS, IMAGE_CHANNELS), 1),
        "proj.bias": draw((4 * TEXT_CHANNELS,), 2),
        "norm.weight": 1 + draw((TEXT_CHANNELS,), 3) / 5,
        "norm.bias": draw((TEXT_CHANNELS,), 4) / 5,
    }
    state = {"image_proj": image_projection, "ip_adapter": projections}
    unet._load_ip_adapter_weights(state, low_cpu_mem_usage=False)
    unet.requires_grad_(False)
    return unet  # type: ignore[no-any-return]


def masked_ip_adapter_unet() -> UNet2DConditionModel:
    """The same for two pictures of different weight, each with a mask."""
    unet = ip_adapter_unet()
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [[0.9, 0.4]]
    return unet


def flux_transformer(**changes: Any) -> FluxTransformer2DModel:
    """FLUX: blocks of two streams and of one, rotary positions, guidance beside the time."""
    config = {
        "in_channels": 8,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_CHANNELS,
        "pooled_projection_dim": POOLED_CHANNELS,
        "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    }
    return randomised(FluxTransformer2DModel(**(config | changes)), 7)


def flux_controlnet() -> FluxControlNetModel:
    """A ControlNet of `flux_transformer` with one block of each kind."""
    return randomised(FluxControlNetModel.from_transformer(
        flux_transformer(), num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, load_weights_from_transformer=False,
    ), 9)  # fmt: skip


def clear_flux(window: int = 3, down_factor: int = 1) -> FluxTransformer2DModel:
    """FLUX with CLEAR's attention; what pools its keys is not even."""
    module = flux_transformer()
    _mount_clear(module, window, down_factor)
    return module


def prompted_flux() -> FluxTransformer2DModel:
    """FLUX with an IP-Adapter for two pictures."""
    module = flux_transformer()
    mount_pictures(module, 2)
    return randomised(module, 9)


def clear_sd35() -> SD3Transformer2DModel:
    """SD3.5 medium with CLEAR's attention: text behind the picture, and a picture alone."""
    module = sd35_transformer()
    _mount_clear(module, 2, 1)
    return module


def _mount_clear(module: nn.Module, window: int, down_factor: int) -> None:
    adapter = mount_clear(module, window=window, down_factor=down_factor)
    adapter.settings.proportional = True
    for number, (name, weight) in enumerate(adapter.parameters().items()):
        if name.endswith("spatial_weight"):
            weight.data += draw(tuple(weight.shape), number) / 9
    module.requires_grad_(False)


def sd3_transformer(**changes: Any) -> SD3Transformer2DModel:
    """SD3: patches of 2x2 latents on a table of positions, text behind the picture."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_CHANNELS,
        "caption_projection_dim": 16,
        "pooled_projection_dim": POOLED_CHANNELS,
        "pos_embed_max_size": 20,
    }
    return randomised(SD3Transformer2DModel(**(config | changes)), 8)


def sd35_transformer() -> SD3Transformer2DModel:
    """SD3.5 medium: normed queries and keys, and a second attention of the picture alone."""
    return sd3_transformer(dual_attention_layers=(0, 1), qk_norm="rms_norm")


def lora_unet() -> UNet2DConditionModel:
    """`sd15_unet` with LoRA layers on linear layers and convolutions."""
    from peft import LoraConfig

    unet = sd15_unet()
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1", "conv_in", "proj_in"]
    unet.add_adapter(LoraConfig(r=3, lora_alpha=1, target_modules=targets), "style")
    return randomised(unet, 6)


@lru_cache(maxsize=1)
def _builtin() -> Any:
    from hirescli.models.load import load
    from hirescli.models.registry import find_card

    return load(find_card("builtin"), dtype="float32")


def builtin_unet() -> UNet2DConditionModel:
    """The denoiser that the package ships, LinFusion mounted, channels last."""
    model = copy.deepcopy(_builtin())
    mount(model.unet, model.linfusion)
    unet: UNet2DConditionModel = model.unet
    return unet


def builtin_autoencoder() -> nn.Module:
    """The autoencoder that the package ships."""
    module: nn.Module = _builtin().autoencoder
    return copy.deepcopy(module)


def unet_inputs(size: Size, batch: int, seed: int) -> Inputs:
    """A denoiser's arguments; a seed gives other latents, text and time."""
    return {
        "sample": picture(batch, 4, size, seed),
        "timestep": 10 + 37 * seed % 900,
        "encoder_hidden_states": draw((batch, TEXT_TOKENS, TEXT_CHANNELS), seed + 100),
    }


def sdxl_inputs(size: Size, batch: int, seed: int) -> Inputs:
    sides = [*size, seed, 3, *size]
    added = {
        "text_embeds": draw((batch, POOLED_CHANNELS), seed + 200),
        "time_ids": torch.tensor([sides] * batch, dtype=torch.float32) * 8,
    }
    return {**unet_inputs(size, batch, seed), "added_cond_kwargs": added}


def controlnet_inputs(size: Size, batch: int, seed: int) -> Inputs:
    control = picture(batch, 3, (8 * size[0], 8 * size[1]), seed + 300)
    return {
        **unet_inputs(size, batch, seed),
        "controlnet_cond": control,
        "conditioning_scale": 0.7,
    }


def residual_inputs(size: Size, batch: int, seed: int) -> Inputs:
    """What a ControlNet that is called plainly hands to the UNet."""
    down, mid = call_controlnet_parts(_plain_controlnet(), controlnet_inputs(size, batch, seed))
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return {**unet_inputs(size, batch, seed), **residuals}


def ip_adapter_inputs(size: Size, batch: int, seed: int) -> Inputs:
    images = [draw((batch, 2, IMAGE_CHANNELS), seed + 400)]
    return {**unet_inputs(size, batch, seed), "added_cond_kwargs": {"image_embeds": images}}


def masked_ip_adapter_inputs(size: Size, batch: int, seed: int) -> Inputs:
    masks = [(picture(1, 2, (4 * size[0], 4 * size[1]), seed + 500) > 0).float()]
    attention = {"ip_adapter_masks": masks}
    return {**ip_adapter_inputs(size, batch, seed), "cross_attention_kwargs": attention}


def builtin_inputs(size: Size, batch: int, seed: int) -> Inputs:
    text = draw((batch, TEXT_TOKENS, 384), seed + 100) / 4
    return {
        **unet_inputs(size, batch, seed),
        "sample": picture(batch, 16, size, seed),
        "encoder_hidden_states": text,
    }


def places(size: Size) -> Tensor:
    """Of FLUX's tokens (N, 3): a kind, the row and the column."""
    made = torch.zeros(*size, 3)
    made[..., 1] += torch.arange(size[0])[:, None]
    made[..., 2] += torch.arange(size[1])
    return made.flatten(0, 1)


def tokens(batch: int, channels: int, size: Size, seed: int) -> Tensor:
    """A picture as tokens (B, N, C)."""
    return picture(batch, channels, size, seed).flatten(2).transpose(1, 2)


def text_inputs(batch: int, seed: int) -> Inputs:
    return {
        "encoder_hidden_states": draw((batch, TEXT_TOKENS, TEXT_CHANNELS), seed + 100),
        "pooled_projections": draw((batch, POOLED_CHANNELS), seed + 200),
    }


def flux_inputs(size: Size, batch: int, seed: int) -> Inputs:
    """A size counts tokens."""
    return {
        "hidden_states": tokens(batch, 8, size, seed),
        **text_inputs(batch, seed),
        "timestep": torch.tensor([0.1 + 0.13 * b + 0.09 * seed for b in range(batch)]),
        "img_ids": places(size),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
        "guidance": torch.full((batch,), 3.5),
    }


def prompted_flux_inputs(size: Size, batch: int, seed: int) -> Inputs:
    """The same with the tokens of two pictures."""
    made = flux_inputs(size, batch, seed)
    channels = made["encoder_hidden_states"].shape[-1]
    tokens = [draw((batch, 1, 4, channels), seed + 20 + i) for i in range(2)]
    return {**made, "joint_attention_kwargs": {"ip_hidden_states": tokens}}


def controlled_flux_inputs(size: Size, batch: int, seed: int) -> Inputs:
    """With what a ControlNet gives to blocks of both kinds."""
    residuals = [tokens(batch, 16, size, seed + 300 + i) / 2 for i in range(2)]
    given = {"controlnet_block_samples": residuals[:1]}
    return {
        **flux_inputs(size, batch, seed),
        **given,
        "controlnet_single_block_samples": residuals,
    }


def sd3_inputs(size: Size, batch: int, seed: int) -> Inputs:
    """A size counts latents."""
    return {
        "hidden_states": picture(batch, 4, size, seed),
        **text_inputs(batch, seed),
        "timestep": torch.tensor([100.0 + 130 * b + 90 * seed for b in range(batch)]),
    }


def pixel_inputs(size: Size, batch: int, seed: int) -> Inputs:
    return {"x": picture(batch, 3, size, seed) / 2}


def latent_inputs(channels: int, key: str = "z") -> Callable[[Size, int, int], Inputs]:
    return lambda size, batch, seed: {key: picture(batch, channels, size, seed)}


def call_unet(module: Any, inputs: Inputs) -> Outputs:
    return (module(**inputs).sample,)


def call_controlnet(module: Any, inputs: Inputs) -> Outputs:
    down, mid = call_controlnet_parts(module, inputs)
    return (*down, mid)


@torch.no_grad()
def call_controlnet_parts(module: Any, inputs: Inputs) -> tuple[list[Tensor], Tensor]:
    down, mid = module(**inputs, return_dict=False)
    return list(down), mid


def call_encode(module: Any, inputs: Inputs) -> Outputs:
    """Mean and deviation of the latents."""
    latents = module.encode(**inputs).latent_dist
    return latents.mean, latents.std


def call_latents(module: Any, inputs: Inputs) -> Outputs:
    return (module.encode(**inputs).latents,)


def call_decode(module: Any, inputs: Inputs) -> Outputs:
    return (module.decode(**inputs).sample,)


@dataclass(frozen=True)
class Family:
    """One kind of component and one way to call it.

    Attributes:
        build: Makes the component, the same at every call.
        inputs: (size, batch, seed) to the keyword arguments of one call; size in input rows.
        call: Calls the component and gives its tensors.
        sizes: Inputs' heights and widths to try.
        least: The smallest height and width that the plain component takes; None if sizes
            cannot be chosen freely.
        tallest: The largest height that hypothesis draws.
        reduces: Whether something must be kept between passes.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[Size, int, int], Inputs]
    call: Callable[[Any, Inputs], Outputs]
    sizes: tuple[Size, ...] = LATENT_SIZES
    least: Size | None = (1, 1)
    tallest: int = 12
    reduces: bool = True
    _made: dict[torch.dtype, nn.Module] = field(default_factory=dict, compare=False, repr=False)

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The component, made once; who changes it takes `build`."""
        if dtype not in self._made:
            self._made[dtype] = self.build().to(DEVICE, dtype)
        return self._made[dtype]

    @torch.no_grad()
    def plain(self, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Outputs:
        """What the component gives outside of any context."""
        return self.call(self.module(dtype), in_dtype(inputs, dtype))

    def reference(self, inputs: Inputs) -> Outputs:
        """What the component gives in float64.

        The plain call in float32 cannot be the measure: it strays by more than 1e-4 of a
        deviation in the norms of a decoder, where torch sums the squares of channels-last
        activations one by one.
        """
        return self.plain(inputs, torch.float64)


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Arguments on the device, with all their floating-point tensors in another dtype."""
    if isinstance(value, dict):
        return {key: in_dtype(item, dtype) for key, item in value.items()}
    if isinstance(value, list):
        return [in_dtype(item, dtype) for item in value]
    if isinstance(value, Tensor):
        return value.to(DEVICE, dtype if value.is_floating_point() else value.dtype)
    return value


# The same contract on a GPU, where there is one.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def _plain_controlnet() -> ControlNetModel:
    return controlnet()


MASKED_SIZES: tuple[Size, ...] = ((16, 24), (16, 8), (8, 8))  # aspects that all levels keep

SD15 = Family(sd15_unet, unet_inputs, call_unet)
SD21 = Family(sd21_unet, unet_inputs, call_unet)
SDXL = Family(sdxl_unet, sdxl_inputs, call_unet)
CONTROLNET = Family(controlnet, controlnet_inputs, call_controlnet)
RESIDUALS = Family(sd15_unet, residual_inputs, call_unet)
LINFUSION = Family(linfusion_unet, unet_inputs, call_unet)
IP_ADAPTER = Family(ip_adapter_unet, ip_adapter_inputs, call_unet)
IP_ADAPTER_MASKS = Family(
    masked_ip_adapter_unet, masked_ip_adapter_inputs, call_unet, MASKED_SIZES, least=None
)
FLUX = Family(flux_transformer, flux_inputs, call_unet, ((17, 5), (8, 5), (5, 9)))
FLUX_CONTROLLED = Family(flux_transformer, controlled_flux_inputs, call_unet, ((17, 5), (5, 9)))
FLUX_PROMPTED = Family(prompted_flux, prompted_flux_inputs, call_unet, ((17, 5), (5, 9)))
CLEAR = Family(clear_flux, flux_inputs, call_unet, ((17, 5), (8, 5), (5, 9)), least=(3, 3))
CLEAR_POOLED = Family(
    lambda: clear_flux(4, 2), flux_inputs, call_unet, ((16, 6), (8, 4), (4, 10)), least=None
)
CLEAR_SD35 = Family(clear_sd35, sd3_inputs, call_unet, ((34, 22), (8, 6), (10, 14)), least=(4, 4))
SD3 = Family(sd3_transformer, sd3_inputs, call_unet, ((34, 22), (8, 6), (10, 14)), least=(2, 2))
SD35 = Family(sd35_transformer, sd3_inputs, call_unet, ((34, 22), (8, 6), (10, 14)), least=(2, 2))
LORA = Family(lora_unet, unet_inputs, call_unet)
KL_ENCODE = Family(autoencoder, pixel_inputs, call_encode, PIXEL_SIZES, least=(8, 8), tallest=30)
KL_DECODE = Family(autoencoder, latent_inputs(4), call_decode)
FLUX_ENCODE = Family(
    flux_autoencoder, pixel_inputs, call_encode, PIXEL_SIZES, least=(8, 8), tallest=30
)
FLUX_DECODE = Family(flux_autoencoder, latent_inputs(16), call_decode)
TINY_ENCODE = Family(
    tiny_autoencoder, pixel_inputs, call_latents, PIXEL_SIZES, tallest=30, reduces=False
)
TINY_DECODE = Family(tiny_autoencoder, latent_inputs(4, "x"), call_decode, reduces=False)
BUILTIN_UNET = Family(builtin_unet, builtin_inputs, call_unet, ((16, 16), (13, 9)))
BUILTIN_ENCODE = Family(
    builtin_autoencoder,
    pixel_inputs,
    call_latents,
    ((72, 40), (40, 88)),
    least=None,
    reduces=False,
)
BUILTIN_DECODE = Family(builtin_autoencoder, latent_inputs(16), call_decode, reduces=False)

FAMILIES = {name: value for name, value in globals().items() if isinstance(value, Family)}
