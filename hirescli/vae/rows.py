"""Encoding and decoding in bands of rows, exactly, for autoencoders that are local.

A local autoencoder says how many latent rows a decoded row depends on (`halo_latent_rows`).
Cut with that halo, a band sees all it would see in the whole picture; where the halo meets
the picture's edge, the convolutions pad as they would there. Nothing is blended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hirescli.models.builtin.autoencoder import ThinAutoencoder

Rows = np.ndarray[Any, np.dtype[np.float32]]


@torch.inference_mode()
def decode_rows(
    autoencoder: ThinAutoencoder, latents: Tensor, *, rows: int
) -> Iterator[tuple[int, Rows]]:
    """Decode latents (1, C, h, w) from top to bottom.

    Args:
        autoencoder: On the device and in the dtype to decode in.
        latents: The whole latents; they are small beside the picture.
        rows: Band height in latent rows, at least 1.

    Yields:
        The first pixel row of a band, and the band (8 * rows, 8w, 3), float32 in about [0, 1],
        unclamped. The last band may be lower.
    """
    halo, factor = autoencoder.halo_latent_rows, _factor(autoencoder)
    height = latents.shape[2]
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, top - halo), min(height, bottom + halo)
        band = latents[:, :, first:last].to(autoencoder.device, autoencoder.dtype)
        band = band.contiguous(memory_format=torch.channels_last)
        (pixels,) = autoencoder.decode(band, return_dict=False)
        pixels = pixels[0, :, (top - first) * factor : (bottom - first) * factor]  # (3, n, W)
        picture = pixels.permute(1, 2, 0).float().mul(0.5).add(0.5).cpu()
        yield top * factor, np.ascontiguousarray(picture.numpy())


@torch.inference_mode()
def encode_rows(
    autoencoder: ThinAutoencoder, bands: Iterable[Rows], *, width_px: int, height_px: int
) -> Iterator[tuple[int, Tensor]]:
    """Encode bands of picture rows, given from top to bottom.

    The encoder reads each 8x8 patch by itself, so a band of whole patches needs no halo.

    Args:
        autoencoder: On the device and in the dtype to encode in.
        bands: Arrays (n, width_px, 3), float32 in [0, 1], every n a multiple of 8.
        width_px: Width of the picture, a multiple of 8.
        height_px: Height of the picture, a multiple of 8.

    Yields:
        The first latent row of a band, and its latents (1, C, n / 8, width_px / 8) in float32
        on the CPU.
    """
    factor, y = _factor(autoencoder), 0
    for band in bands:
        assert band.shape[0] % factor == 0, "a band must hold whole patches"
        assert band.shape[1:] == (width_px, 3)
        pixels = torch.from_numpy(band).permute(2, 0, 1)[None].mul(2).sub(1)
        pixels = pixels.to(autoencoder.device, autoencoder.dtype)
        (latents,) = autoencoder.encode(pixels, return_dict=False)
        yield y // factor, latents.float().cpu()
        y += band.shape[0]
    assert y == height_px, "the bands must make the whole picture"


def _factor(autoencoder: ThinAutoencoder) -> int:
    levels = len(autoencoder.config["block_out_channels"])
    return 1 << (levels - 1)
