"""Measuring: peaks are those of the call, cases agree between ways, copies share weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

import hirescli
from hirescli.errors import RequestError, RunError
from hirescli.evaluation.bands import compare
from hirescli.evaluation.benchmark import measured
from hirescli.evaluation.case import Case, in_child, run_case, tile, tile_count
from hirescli.evaluation.components import SD_AUTOENCODER, decoder, randomised, threads_set
from hirescli.evaluation.decoding import WAYS, decodes
from hirescli.evaluation.peak import can_reset, peak_memory

MEGABYTE = 10**6
TINY = SD_AUTOENCODER | {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}


def tiny_autoencoder() -> AutoencoderKL:
    return randomised(AutoencoderKL(**TINY))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vae")
    tiny_autoencoder().save_pretrained(path)
    return path


def case_of(folder: Path, way: str = "plain") -> Case:
    return Case("decoder", way, (16, 11), "float32", 1, folder=str(folder), rows=3)


@pytest.mark.skipif(not can_reset(), reason="the peak of this system cannot be reset")
def test_a_peak_is_of_its_context() -> None:
    for size_bytes in (200 * MEGABYTE, 50 * MEGABYTE):
        with peak_memory() as peak:
            block = torch.zeros(size_bytes, dtype=torch.uint8)
            block.fill_(1)
            del block
        assert size_bytes * 0.95 <= peak.above_bytes <= size_bytes * 1.2 + 5 * MEGABYTE


def test_random_weights_are_the_same_each_time_and_norms_are_random() -> None:
    one, other = tiny_autoencoder().state_dict(), tiny_autoencoder().state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert one["decoder.conv_norm_out.weight"].std() > 0.1


def test_a_shared_copy_has_the_weights_and_not_the_forward() -> None:
    part = decoder(tiny_autoencoder())
    shared = part.shared()
    both = zip(part.module.parameters(), shared.module.parameters(), strict=True)
    assert all(a is b for a, b in both)
    plain = part.run((9, 5))
    with hirescli.stream(shared.module, rows=2) as report:
        assert torch.allclose(shared.run((9, 5)), plain, atol=1e-4 * float(plain.std()))
        passes = report.passes
        part.run((9, 5))
        assert report.passes == passes > 0


def test_exact_is_in_float64() -> None:
    part = decoder(tiny_autoencoder())
    exact = part.in_double().run((9, 5))
    assert exact.dtype == torch.float64
    assert torch.allclose(exact.float(), part.run((9, 5)), atol=1e-3 * float(exact.std()))


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    with threads_set(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("latents", [(8, 8), (9, 8), (16, 11), (6, 17)])
def test_tiles_are_counted_as_diffusers_cuts_them(latents: tuple[int, int]) -> None:
    autoencoder = tiny_autoencoder()
    count, decoded = tile(autoencoder, latents), []
    autoencoder.decoder.register_forward_hook(lambda *_: decoded.append(1))
    decoder(autoencoder).run(latents)
    assert len(decoded) == count


def test_tile_count() -> None:
    assert tile_count((32, 32), 32, 24) == 1
    assert tile_count((64, 33), 32, 24) == 3 * 2


@pytest.mark.parametrize("way", WAYS)
def test_a_case_here_gives_what_diffusers_gives(folder: Path, way: str) -> None:
    outcome, made = run_case(case_of(folder, way))
    plain = decoder(tiny_autoencoder()).run((16, 11))
    error = float((made - plain).abs().max() / plain.std())
    if way == "tiled":
        assert outcome.tiles > 1
        assert error > 1e-2
    else:
        assert error < 1e-4
    assert (outcome.rows == 3) is (outcome.passes > 0) is (way == "banded")
    assert outcome.seconds > 0


@pytest.mark.slow
def test_decodes(folder: Path) -> None:
    """Three processes; the whole image is equal to itself, bands almost, tiles are not."""
    whole, banded, tiled = decodes(case_of(folder))
    assert (whole.width_px, whole.height_px) == (88, 128)
    assert (whole.max_error, whole.psnr_db) == (0, None)
    assert banded.max_error < 1e-4
    assert banded.rmse <= banded.max_error < tiled.max_error
    assert banded.outcome.planned_peak_bytes
    assert banded.psnr_db > tiled.psnr_db


def test_a_budget_that_is_too_small_is_the_requests_fault(folder: Path, tmp_path: Path) -> None:
    case = replace(case_of(folder, "banded"), memory_bytes=1)
    with pytest.raises(RequestError, match="budget"):
        in_child(case, tmp_path / "made")


def test_a_child_that_fails_is_told() -> None:
    with pytest.raises(RunError, match="ended with 1"):
        measured(["{"], module="hirescli.evaluation.case")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compare_the_denoiser(dtype: str) -> None:
    case = Case("unet", "plain", (5, 6), dtype, 1)
    low, high = compare(case, [2, None], repeat=2)
    assert low.rows == 2
    assert high.rows >= 5
    for each in (low, high):
        assert (each.width_px, each.height_px, each.exact_px) == (48, 40, 48)
        assert len(each.plain_seconds) == len(each.banded_seconds) == 2 * 5  # short ones repeat
        assert each.passes > 0
        assert each.planned_peak_bytes > 0
        limit = 1e-4 if dtype == "float32" else 0.2
        assert max(each.error, each.plain_from_exact, each.banded_from_exact) < limit
