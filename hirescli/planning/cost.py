"""What a stage costs: arithmetic, time, memory and disk, from the card's figures alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hirescli.planning.card import Card
from hirescli.planning.cascade import Stage
from hirescli.recipe import Recipe

_CHANNELS = 3  # red, green, blue
_LATENT_BYTES = 4  # latents are float32 whatever the denoiser's dtype is
_LATENT_COPIES = 4  # sample, noise, prediction, and the sample of the step before
# A band wants to be small beside the rest, yet its halo rows are computed twice: below 16 rows
# that costs too much, unless the budget leaves no choice.
_BAND_BYTES = 400 * 10**6
_MOST_ROWS, _LEAST_ROWS = 64, 16
_SPOOL_BYTES = {"between": 2, "last": 1}  # per channel: 16 bits between stages, 8 at the end
# Largest output for a spool of 1: a pyramid adds 1/4 + 1/16 + ... = 1/3; noise hardly packs.
_PYRAMID = 4 / 3
# JPEG of plain noise by quality; above 85 colour is kept at full resolution. Measured on
# uniform noise: 0.25 at 85, 0.81 at 95, 1.37 at 100.
_JPEG_PER_SPOOL = ((85, 0.5), (95, 1.0), (100, 2.0))


@dataclass(frozen=True)
class StageMemory:
    """Peak memory of one stage as a sum: weights, latents, and the larger of two works."""

    base_bytes: int
    latents_bytes: int
    denoise_bytes: int
    band_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Denoising and decoding never happen at once, so the larger one counts."""
        return self.base_bytes + self.latents_bytes + max(self.denoise_bytes, self.band_bytes)


@dataclass(frozen=True)
class StageCost:
    """One stage with what it takes."""

    stage: Stage
    memory: StageMemory
    flops: float
    seconds: float


def stage_cost(stage: Stage, *, card: Card, recipe: Recipe, rows: int, cores: int) -> StageCost:
    """The cost of one stage at a band height of `rows` latent rows."""
    flops = stage_flops(stage, card=card, rows=rows)
    return StageCost(
        stage=stage,
        memory=stage_memory(stage, card=card, dtype_bytes=dtype_bytes(recipe), rows=rows),
        flops=flops,
        seconds=flops / (card.flops_per_second_per_core * cores),
    )


def stage_memory(stage: Stage, *, card: Card, dtype_bytes: int, rows: int) -> StageMemory:
    """Peak memory of one stage, in bytes."""
    latent_px = stage.latent_width * stage.latent_height
    latent_bytes = latent_px * card.latent_channels * _LATENT_BYTES
    # The card's figures are for float32; both guidance halves run in one batch.
    denoise = latent_px * card.denoiser_bytes_per_latent_px * dtype_bytes / 4
    return StageMemory(
        base_bytes=card.base_memory_bytes,
        latents_bytes=latent_bytes * _LATENT_COPIES,
        denoise_bytes=int(denoise * denoiser_calls_per_step(stage)),
        band_bytes=band_bytes(stage, card=card, rows=rows),
    )


def band_bytes(stage: Stage, *, card: Card, rows: int) -> int:
    """Memory of encoding or decoding `rows` latent rows, halo above and below included."""
    read_rows = min(rows + 2 * card.halo_latent_rows, stage.latent_height)
    band_px = read_rows * card.vae_factor * stage.width_px
    return int(band_px * card.decoder_bytes_per_px_of_band)


def band_rows(largest: Stage, *, card: Card, budget_bytes: int) -> int:
    """Band height of encoding and decoding, in latent rows: a power of two up to 64.

    It depends on the size, and on the budget only where that is tight: rounding depends on
    the band height, so a roomy budget must not change the bytes of a picture.
    """
    memory = stage_memory(largest, card=card, dtype_bytes=4, rows=1)
    room = budget_bytes - memory.base_bytes - memory.latents_bytes
    rows = _MOST_ROWS
    while rows > _LEAST_ROWS and band_bytes(largest, card=card, rows=rows) > _BAND_BYTES:
        rows //= 2
    while rows > 1 and band_bytes(largest, card=card, rows=rows) > room:
        rows //= 2
    return rows


def stage_flops(stage: Stage, *, card: Card, rows: int) -> float:
    """Floating-point operations of one stage: denoise, decode, and encode unless it is first.

    Every band of `rows` latent rows computes its halo anew.
    """
    read_rows = min(rows + 2 * card.halo_latent_rows, stage.latent_height)
    bands = math.ceil(stage.latent_height / rows)
    px = stage.width_px * read_rows * bands * card.vae_factor
    latent_px = stage.latent_width * stage.latent_height
    calls = stage.steps * denoiser_calls_per_step(stage)
    encode = 0.0 if stage.kind == "base" else px * card.encoder_flops_per_px
    denoise = latent_px * card.denoiser_flops_per_latent_px * calls
    return denoise + px * card.decoder_flops_per_px + encode


def denoiser_calls_per_step(stage: Stage) -> int:
    """Guidance asks the denoiser twice: with the prompt and with the negative prompt."""
    return 2 if stage.guidance_scale > 1 else 1


def disk_bytes(stages: tuple[Stage, ...], recipe: Recipe) -> int:
    """Largest use of disk.

    The last spool is allocated before the first stage and stays until the output stands.
    Beside it lives one spool between stages, or, after these, the output.
    """
    *before, last = (stage.width_px * stage.height_px * _CHANNELS for stage in stages)
    last_spool = last * _SPOOL_BYTES["last"]
    between = max(before, default=0) * _SPOOL_BYTES["between"]
    return last_spool + max(between, output_bytes(recipe))


def output_bytes(recipe: Recipe) -> int:
    """Largest size of the finished file."""
    spool = recipe.width_px * recipe.height_px * _CHANNELS * _SPOOL_BYTES["last"]
    jpeg = next(ratio for quality, ratio in _JPEG_PER_SPOOL if recipe.quality <= quality)
    if recipe.format != "tiff":
        return int(spool * {"png": 1.0, "jpeg": jpeg}[recipe.format])
    packed = max(1.0, jpeg) if recipe.compression == "jpeg" else 1.0
    return int(spool * _PYRAMID * packed)


def dtype_bytes(recipe: Recipe) -> int:
    """Bytes of one number in the denoiser."""
    assert recipe.dtype is not None, "the recipe is not resolved"
    return {"float32": 4, "bfloat16": 2}[recipe.dtype]
