"""Rows in and rows out: encoding and decoding through the engine, or by diffusers' tiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hirescli.bands.attention import pooling_keys
from hirescli.bands.engine import banded, no_collection
from hirescli.bands.tensor import naming_modules

if TYPE_CHECKING:
    from hirescli.bands.engine import Engine
    from hirescli.bands.snapshot import Resumable
    from hirescli.bands.tensor import BandedTensor

Rows = np.ndarray[Any, np.dtype[np.float32]]
RowSink = Callable[[int, Rows], None]


class PictureRows(Protocol):
    """A picture of which any rows can be had."""

    def rows(self, y0: int, y1: int) -> Rows:
        """Rows y0 to y1: (y1 - y0, W, 3), float32 in [0, 1]."""


@torch.no_grad()
def decode_rows(
    autoencoder: Any, latents: BandedTensor, *, engine: Engine, sink: RowSink, pools: bool = True,
    resumable: Resumable | None = None,
) -> None:  # fmt: skip
    """Decode latents, from top to bottom, without ever holding the picture.

    Args:
        autoencoder: Of diffusers' interface, in the dtype to decode in.
        latents: (1, C, h, w), as the denoiser has them: scaled and shifted.
        engine: Computes, in bands of latent rows.
        sink: Takes the first pixel row of a band and the band (n, W, 3), float32 in about
            [0, 1], unclamped. After memory ran out it may be given rows again.
        pools: Whether the middle block may attend to averages where keys are too many.
        resumable: Where the call is remembered, and what the sink's rows go to.

    Raises:
        NotFiniteError: If a value is no number.
    """
    with no_collection(), naming_modules(autoencoder), pooling_keys(pools):
        sample = _unscaled(autoencoder, latents.to(autoencoder.dtype))
        (picture,) = autoencoder.decode(sample, return_dict=False)
        rows_to = [lambda lo, hi, band: sink(lo, _pixels(band))]
        engine.compute(picture.nodes, rows_to, resumable)


@torch.no_grad()
def decode_tiled(autoencoder: Any, latents: Tensor, *, rows: int, sink: RowSink) -> None:
    """Decode whole latents by diffusers' own tiling, which blends tiles and is not exact.

    For comparison, and for autoencoders that the engine does not know. Holds the picture.

    Args:
        autoencoder: One that has ``enable_tiling``.
        latents: (1, C, h, w).
        rows: Pixel rows that the sink is given at a time.
        sink: As in `decode_rows`.
    """
    autoencoder.enable_tiling()
    try:
        sample = _unscaled(autoencoder, latents.to(autoencoder.dtype))
        (picture,) = autoencoder.decode(sample, return_dict=False)
    finally:
        autoencoder.disable_tiling()
    for top in range(0, picture.shape[2], rows):
        sink(top, _pixels(picture[:, :, top : top + rows]))


@torch.no_grad()
def encode_rows(
    autoencoder: Any, picture: PictureRows, *, width_px: int, height_px: int, engine: Engine,
    store: str, place: torch.device | str = "cpu", told: Callable[[int], None],
    pools: bool = True, record: str = "encoder",
) -> BandedTensor:  # fmt: skip
    """Encode a picture whose rows are made as they are read.

    Args:
        autoencoder: Of diffusers' interface, in the dtype to encode in.
        picture: Gives rows in [0, 1].
        width_px: Width of the picture.
        height_px: Height of the picture.
        engine: Computes, in bands of pixel rows.
        store: Where the latents are kept.
        place: Where bands are computed.
        told: Called with the pixel rows that are read.
        pools: As in `decode_rows`.
        record: Name under which the engine's journal remembers them: one for each picture.

    Returns:
        Latents (1, C, h, w), float32, scaled and shifted as the denoiser has them.
    """

    def source(lo: int, hi: int) -> Tensor:
        rows = torch.from_numpy(picture.rows(lo, hi)).permute(2, 0, 1)[None]
        told(hi)
        return rows.mul(2).sub(1).to(place, autoencoder.dtype)

    with no_collection(), naming_modules(autoencoder), pooling_keys(pools):
        shape = (1, 3, height_px, width_px)
        pixels = banded(shape, source, dtype=autoencoder.dtype, device=place)
        (encoded,) = autoencoder.encode(pixels, return_dict=False)
        latents = encoded if isinstance(encoded, Tensor) else encoded.mode()  # or a distribution
        (kept,) = engine.keep([_scaled(autoencoder, latents).float()], store, record=record)
    return kept


def _scaled(autoencoder: Any, latents: Any) -> Any:
    factor, shift = _scaling(autoencoder)
    return (latents - shift) * factor if (factor, shift) != (1.0, 0.0) else latents


def _unscaled(autoencoder: Any, latents: Any) -> Any:
    factor, shift = _scaling(autoencoder)
    return latents / factor + shift if (factor, shift) != (1.0, 0.0) else latents


def _scaling(autoencoder: Any) -> tuple[float, float]:
    config = autoencoder.config
    return float(config.scaling_factor), float(config.get("shift_factor") or 0.0)


def _pixels(band: Tensor) -> Rows:
    """Rows (1, 3, n, W) in about [-1, 1] as (n, W, 3) in about [0, 1]."""
    pixels = band[0].permute(1, 2, 0).float().mul(0.5).add(0.5).cpu()
    return np.ascontiguousarray(pixels.numpy())
