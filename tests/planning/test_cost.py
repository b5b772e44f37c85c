import pytest

from hirescli.models.registry import find_card
from hirescli.planning import cost
from hirescli.planning.cascade import Stage, stages
from hirescli.recipe import Recipe

CARD = find_card("builtin").model_copy(
    update={
        "latent_channels": 12,
        "vae_factor": 8,
        "halo_latent_rows": 2,
        "base_memory_bytes": 900_000_000,
        "denoiser_bytes_per_latent_px": 12_000.0,
        "decoder_bytes_per_px_of_band": 400.0,
        "denoiser_flops_per_latent_px": 3e6,
        "encoder_flops_per_px": 4e4,
        "decoder_flops_per_px": 8e4,
    }
)
UPSCALE = Stage(1, "upscale", 2048, 1024, 256, 128, 0.3, 4, 1.0)
BASE = Stage(0, "base", 256, 256, 32, 32, None, 30, 4.0)


def test_memory_is_a_short_sum() -> None:
    memory = cost.stage_memory(UPSCALE, card=CARD, dtype_bytes=4, rows=16)
    latent_px = 256 * 128
    assert memory.base_bytes == 900_000_000
    assert memory.latents_bytes == 4 * latent_px * 12 * 4  # copies, channels, float32
    assert memory.denoise_bytes == latent_px * 12_000  # one call: no guidance
    assert memory.band_bytes == (2 + 16 + 2) * 8 * 2048 * 400  # halo, rows, halo
    assert memory.peak_bytes == 900_000_000 + 4 * latent_px * 12 * 4 + latent_px * 12_000


def test_guidance_doubles_and_bfloat16_halves_the_denoiser() -> None:
    one = cost.stage_memory(UPSCALE, card=CARD, dtype_bytes=4, rows=16).denoise_bytes
    assert cost.stage_memory(UPSCALE, card=CARD, dtype_bytes=2, rows=16).denoise_bytes == one // 2
    guided = cost.stage_memory(BASE, card=CARD, dtype_bytes=4, rows=16)
    assert guided.denoise_bytes == 2 * 32 * 32 * 12_000


def test_a_band_never_has_more_rows_than_the_picture() -> None:
    assert cost.band_bytes(BASE, card=CARD, rows=64) == 32 * 8 * 256 * 400


def test_flops_count_calls_and_halo_rows() -> None:
    base = cost.stage_flops(BASE, card=CARD, rows=32)
    assert base == 32 * 32 * 3e6 * 30 * 2 + 256 * 256 * 8e4  # guided; no encode
    upscale = cost.stage_flops(UPSCALE, card=CARD, rows=16)
    px = 2048 * (16 + 4) * 8 * 8  # eight bands
    assert upscale == 256 * 128 * 3e6 * 4 + px * (4e4 + 8e4)


def test_band_height_depends_on_the_budget_only_where_it_is_tight() -> None:
    roomy = [
        cost.band_rows(UPSCALE, card=CARD, budget_bytes=budget)
        for budget in (3 * 10**9, 8 * 10**9, 10**12)
    ]
    assert roomy == [32] * 3  # 36 rows of 2048 px stay below 256 MB, 68 do not
    tight_bytes = 900_000_000 + 4 * 256 * 128 * 48 + 12 * 8 * 2048 * 400
    assert cost.band_rows(UPSCALE, card=CARD, budget_bytes=tight_bytes) == 8
    assert cost.band_rows(UPSCALE, card=CARD, budget_bytes=tight_bytes - 1) == 4
    assert cost.band_rows(UPSCALE, card=CARD, budget_bytes=1) == 1


@pytest.mark.parametrize(
    ("choices", "expected_bytes"),
    [
        # 8-bit spool + the larger of a 16-bit spool one stage before and the output
        ({"format": "tiff"}, 3 * 2048**2 + 3 * 2048**2 * 4 // 3),
        ({"format": "png"}, 3 * 2048**2 + 3 * 2048**2),
        ({"format": "jpeg", "quality": 80}, 3 * 2048**2 + 2 * 3 * 1024**2),
        ({"format": "jpeg", "quality": 90}, 2 * 3 * 2048**2),
        ({"format": "jpeg", "quality": 100}, 3 * 3 * 2048**2),
    ],
)
def test_disk_is_a_short_sum(choices: dict[str, object], expected_bytes: int) -> None:
    recipe = Recipe.from_fragments({"prompt": "a", "size": 2048}, choices)
    assert cost.disk_bytes(stages(recipe, CARD), recipe) == expected_bytes
