"""The built-in autoencoder: a linear encoder, a thin convolutional decoder, no normalisation.

The encoder projects each 8x8 patch on its first principal components, so encoding is exact
in any band of eight rows and costs next to nothing. The decoder inverts that projection and
adds a convolutional correction that knows the neighbourhood. Nothing reads the whole picture:
a band of rows decodes exactly from its rows and a halo.

Shapes: pictures ``(B, 3, H, W)`` in [-1, 1]; latents ``(B, 16, H/8, W/8)``, channels ordered
from brightness and colour to fine detail and scaled between their natural and equal
variances, so that noise covers detail first and layout last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

FACTOR = 8


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution with weights of zero: what it corrects starts uncorrected."""
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


class ResidualBlock(nn.Module):
    """``x + conv(silu(conv(silu(x))))`` with 3x3 convolutions; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _zero(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        correction: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + correction


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(count)]


class ThinAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Autoencoder of the built-in model: 8x down, 16 channels, no normalisation.

    Args:
        latent_channels: Channels of the latents.
        block_out_channels: Its length says the factor (2 ** (length - 1)) to diffusers'
            pipelines, which read nothing else of it.
        decoder_channels: Widths of the decoder at 1/8, 1/4 and 1/2 of the resolution.
        decoder_blocks: Residual blocks at 1/8, 1/4 and 1/2.
        scaling_factor: 1.0, as the encoder scales; diffusers' pipelines read it.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 16,
        block_out_channels: Sequence[int] = (32, 32, 64, 128),
        decoder_channels: Sequence[int] = (128, 80, 32),
        decoder_blocks: Sequence[int] = (4, 2, 1),
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.encoder = nn.Conv2d(3, latent_channels, FACTOR, stride=FACTOR)
        self.decoder_linear = nn.Sequential(
            nn.Conv2d(latent_channels, 3 * FACTOR**2, 1), nn.PixelShuffle(FACTOR)
        )
        wide, middle, narrow = decoder_channels
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, wide, 3, padding=1),
            *_blocks(wide, decoder_blocks[0]),
            nn.Conv2d(wide, 4 * middle, 1),
            nn.PixelShuffle(2),
            *_blocks(middle, decoder_blocks[1]),
            nn.Conv2d(middle, 4 * narrow, 1),
            nn.PixelShuffle(2),
            *_blocks(narrow, decoder_blocks[2]),
            nn.SiLU(),
            _zero(nn.Conv2d(narrow, 12, 3, padding=1)),
            nn.PixelShuffle(2),
        )

    @torch.no_grad()
    def start_from_components(self, pictures: Tensor) -> None:
        """Set the linear maps to the principal components of pictures (N, 3, H, W).

        Component c of deviation s_c is divided by g sqrt(s_c), with g such that the latents'
        mean variance is 1: half way between natural and equal variances.
        """
        patches = F.unfold(pictures, FACTOR, stride=FACTOR).transpose(1, 2).flatten(0, 1)
        mean = patches.mean(0)  # patches: (n, 192)
        centred = patches - mean
        variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        count = self.config["latent_channels"]
        std, basis = variances.flip(0)[:count].sqrt(), vectors.flip(1)[:, :count]
        scale = std.sqrt() * std.mean().sqrt()
        encoder, decoder = self.encoder, self.decoder_linear[0]
        assert isinstance(decoder, nn.Conv2d)
        assert encoder.bias is not None
        assert decoder.bias is not None
        encoder.weight.copy_((basis / scale).T.view_as(encoder.weight))
        encoder.bias.copy_(-(mean @ basis) / scale)
        decoder.weight.copy_((basis * scale).view_as(decoder.weight))
        decoder.bias.copy_(mean)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """Latents (B, 16, H/8, W/8) of a picture (B, 3, H, W) in [-1, 1]; H, W multiples of 8."""
        latents = self.encoder(x)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self, z: Tensor, generator: object = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Picture (B, 3, 8h, 8w), about [-1, 1] and unclamped, of latents (B, 16, h, w)."""
        sample = self.decoder_linear(z) + self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of a picture (B, 3, H, W)."""
        (picture,) = self.decode(self.encoder(x), return_dict=False)
        return picture
