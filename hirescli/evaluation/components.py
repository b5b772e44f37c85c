"""Components to measure, each with inputs of any size, the same at every call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from hirescli.errors import RunError
from hirescli.evaluation.folder import check_folder
from hirescli.models.load import DTYPES, load, quiet_libraries
from hirescli.models.registry import find_card

# Stable Diffusion's autoencoder as its published configurations have it. `sample_size` is that
# of sd-vae-ft-mse and sets the side of diffusers' tiles.
SD_AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
}
_SEED = 0
_TIMESTEP = 500
_TEXT_TOKENS = 48

Inputs = dict[str, Any]
Latents = tuple[int, int]  # height, width
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Component:
    """A module of diffusers and how it is called.

    Attributes:
        name: For people.
        module: With its weights, ready to run.
        inputs: From height and width in latents to keyword arguments, batch of one.
        call: Calls a module of this kind with such inputs; gives the one tensor it makes.
        exact_latents: Largest side to compute in float64: rounding shows, and it ends soon.
    """

    name: str
    module: Any
    inputs: Callable[[Latents], Inputs]
    call: Callable[[Any, Inputs], Tensor]
    exact_latents: int

    def run(self, latents: Latents) -> Tensor:
        """Call the module at this size, without gradients."""
        with torch.no_grad():
            return self.call(self.module, self.inputs(latents))

    def shared(self) -> Component:
        """The same with a module of its own over the same weights, to be streamed beside it."""
        weights = {id(each): each for each in (*self.module.parameters(), *self.module.buffers())}
        return replace(self, module=copy.deepcopy(self.module, weights))

    def in_double(self) -> Component:
        """The same in float64: nearer to the real numbers than what is measured.

        The sums of linear attention are float32 by definition and stay so.
        """
        made = nn.Module.to(copy.deepcopy(self.module), torch.float64)  # diffusers' own warns
        return replace(self, module=made, inputs=lambda size: _doubled(self.inputs(size)))


def component(name: str, *, dtype: str, folder: Path | None = None) -> Component:
    """A component by its name.

    Args:
        name: "unet": the built-in model's denoiser. "decoder": of an autoencoder in the size of
            Stable Diffusion's with random weights, or of the one in `folder`.
        dtype: "float32" or "bfloat16".
        folder: An AutoencoderKL in diffusers layout.

    Raises:
        RequestError: If the folder holds no AutoencoderKL.
        RunError: If weights are missing or damaged.
    """
    if name == "unet":
        return _builtin_unet(dtype)
    assert name == "decoder"
    module = sd_autoencoder() if folder is None else _saved_autoencoder(folder)
    return decoder(nn.Module.to(module, DTYPES[dtype]))


def _builtin_unet(dtype: str) -> Component:
    unet = load(find_card("builtin"), dtype=dtype).unet
    config: Any = unet.config

    def inputs(latents: Latents) -> Inputs:
        text = (1, _TEXT_TOKENS, config.cross_attention_dim)
        return {
            "sample": _draw((1, config.in_channels, *latents), 1).to(DTYPES[dtype]),
            "timestep": torch.tensor(_TIMESTEP),
            "encoder_hidden_states": (_draw(text, 2) / 4).to(DTYPES[dtype]),
        }

    return Component("built-in UNet", unet, inputs, _call_unet, 128)


def _call_unet(unet: Any, inputs: Inputs) -> Tensor:
    made: Tensor = unet(**inputs, return_dict=False)[0]
    return made


def decoder(autoencoder: Any) -> Component:
    """The decoder of an AutoencoderKL."""
    channels = autoencoder.config.latent_channels
    weight = next(autoencoder.parameters())

    def inputs(latents: Latents) -> Inputs:
        return {"z": _draw((1, channels, *latents), 1).to(weight.dtype)}

    return Component("KL decoder", autoencoder, inputs, _call_decoder, 16)


def _call_decoder(autoencoder: Any, inputs: Inputs) -> Tensor:
    made: Tensor = autoencoder.decode(**inputs, return_dict=False)[0]
    return made


def sd_autoencoder() -> AutoencoderKL:
    """Stable Diffusion's autoencoder with random weights, norms and biases among them."""
    autoencoder: AutoencoderKL = AutoencoderKL(**SD_AUTOENCODER)
    return randomised(autoencoder)


@torch.no_grad()
def randomised(module: ModuleT) -> ModuleT:
    """The module with all weights drawn anew, always the same; layers keep the variance.

    Fresh modules flatter: their norms scale by one, and a mistake there would not show.
    """
    generator = torch.Generator().manual_seed(_SEED)
    for owner in module.modules():
        for key, parameter in owner.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise + (key != "bias"))
    return module.eval().requires_grad_(False)


def _saved_autoencoder(folder: Path) -> nn.Module:
    check_folder(folder)
    try:
        with quiet_libraries():
            module: Any = AutoencoderKL.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
    except (OSError, ValueError) as error:
        raise RunError(f"the weights in {folder} cannot be loaded: {error}") from error
    made: nn.Module = module.eval().requires_grad_(False)
    return made


@contextmanager
def threads_set(threads: int) -> Iterator[None]:
    """Compute with so many threads while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _doubled(inputs: Inputs) -> Inputs:
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
