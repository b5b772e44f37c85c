"""Decoding and encoding in rows equal the whole at every band height, size and store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hirescli.bands.engine import Engine, banded_tensor
from hirescli.errors import NotFiniteError
from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.output.resize import ArrayRows, Resized
from hirescli.planning.passes import Store
from hirescli.vae.rows import Rows, decode_rows, decode_tiled, encode_rows


def autoencoder(blocks: tuple[int, int, int]) -> ThinAutoencoder:
    torch.manual_seed(0)
    model = ThinAutoencoder(latent_channels=4, decoder_channels=(12, 8, 4), decoder_blocks=blocks)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def scaled_autoencoder() -> AutoencoderKL:
    """With norms, attention, a distribution of latents, a factor and a shift."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=8,
        scaling_factor=0.3,
        shift_factor=0.2,
    )
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


MODELS = [autoencoder((0, 0, 0)), autoencoder((1, 2, 1)), autoencoder((4, 2, 1))]
KL = scaled_autoencoder()


def engine(rows: int, folder: Path | None = None) -> Engine:
    stores = (Store("host", 10**12), Store("disk", 10**12, 5e8))
    return Engine(stores=stores, rows=rows, spill=folder)


def decoded(model: Any, z: Tensor, rows: int) -> Rows:
    """The bands, which come from top to bottom without a gap."""
    bands: list[Rows] = []

    def sink(y: int, band: Rows) -> None:
        assert band.dtype == np.float32
        assert y == sum(len(each) for each in bands)
        bands.append(band)

    decode_rows(model, banded_tensor(z), engine=engine(rows), sink=sink)
    assert max(len(band) for band in bands) <= rows * len(np.concatenate(bands)) // z.shape[2]
    return np.concatenate(bands)


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels_of(picture: Tensor) -> Rows:
    made: Rows = (picture[0].permute(1, 2, 0) * 0.5 + 0.5).numpy()
    return made


@settings(max_examples=30)
@given(
    model=st.sampled_from(MODELS),
    rows=st.integers(1, 36),
    height=st.integers(1, 32),
    width=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_decoded_in_bands_equals_whole(
    model: ThinAutoencoder, rows: int, height: int, width: int, seed: int
) -> None:
    z = noise((1, 4, height, width), seed)
    with torch.no_grad():
        whole = pixels_of(model.decode(z).sample)
    made = decoded(model, z, rows)
    assert made.shape == (8 * height, 8 * width, 3)
    largest = float(np.abs(whole).max())
    np.testing.assert_allclose(made, whole, rtol=1e-4, atol=1e-5 * largest)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 12),
    height=st.integers(1, 10),
    width=st.integers(1, 9),
    store=st.sampled_from(["host", "disk"]),
    seed=st.integers(0, 9),
)
def test_encoded_in_bands_equals_whole(
    rows: int, height: int, width: int, store: str, seed: int
) -> None:
    model = MODELS[1]
    picture = np.random.default_rng(seed).random((8 * height, 8 * width, 3), dtype=np.float32)
    with torch.no_grad():
        whole = model.encode(torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1).latents
    torch.testing.assert_close(encoded(model, picture, rows, store), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pools", [False, True])
def test_the_encoder_pools_its_keys_where_it_may(
    monkeypatch: pytest.MonkeyPatch, pools: bool
) -> None:
    monkeypatch.setattr("hirescli.bands.attention.MOST_POOLED_KEYS", 6)
    picture = np.random.default_rng(4).random((16, 24, 3), dtype=np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1
        whole = (KL.encode(pixels).latent_dist.mode() - 0.2) * 0.3
    error = (encoded(KL, picture, 16, "host", pools) - whole).abs().max() / whole.std()
    assert error > 1e-3 if pools else error < 1e-4


def encoded(model: Any, picture: Rows, rows: int, store: str, pools: bool = True) -> Tensor:
    """Latents of a picture of its own size."""
    height_px, width_px, _ = picture.shape
    told: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = encode_rows(
            model,
            Resized(ArrayRows(picture), width_px=width_px, height_px=height_px),
            width_px=width_px,
            height_px=height_px,
            engine=engine(8 * rows, Path(folder)),
            store=store,
            told=told.append,
            pools=pools,
        )
        (made,) = engine(rows).whole([kept])
    assert told == sorted(told)
    assert told[-1] == height_px
    assert made.dtype == torch.float32
    return made


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_factor_and_shift_are_undone_and_done(rows: int) -> None:
    z = noise((1, 4, 9, 7), 1)
    picture = np.random.default_rng(1).random((18, 14, 3), dtype=np.float32)
    with torch.no_grad():
        whole = pixels_of(KL.decode(z / 0.3 + 0.2).sample)
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1
        latents = (KL.encode(pixels).latent_dist.mode() - 0.2) * 0.3
    np.testing.assert_allclose(decoded(KL, z, rows), whole, atol=1e-4 * whole.std())
    made = encoded(KL, picture, rows, "host")
    torch.testing.assert_close(made, latents, rtol=0, atol=1e-4 * float(latents.std()))


def test_a_picture_is_enlarged_on_its_way_to_the_encoder() -> None:
    picture = np.random.default_rng(2).random((8, 12, 3), dtype=np.float32)
    twice = Resized(ArrayRows(picture), width_px=24, height_px=16)
    kept = encode_rows(
        MODELS[1], twice, width_px=24, height_px=16, engine=engine(8), store="host",
        told=lambda rows: None,
    )  # fmt: skip
    whole = Resized(ArrayRows(picture), width_px=24, height_px=16).rows(0, 16)
    with torch.no_grad():
        wanted = MODELS[1].encode(torch.from_numpy(whole).permute(2, 0, 1)[None] * 2 - 1).latents
    torch.testing.assert_close(engine(8).whole([kept])[0], wanted, rtol=1e-4, atol=1e-5)


def test_rows_that_are_no_numbers_are_not_given_out() -> None:
    z = noise((1, 4, 6, 4), 0)
    z[0, 0, 4, 2] = float("nan")
    given_out: list[int] = []
    with pytest.raises(NotFiniteError, match="not a finite number"):
        decode_rows(
            MODELS[0], banded_tensor(z), engine=engine(1), sink=lambda y, _: given_out.append(y)
        )
    assert given_out == [0, 8]  # a decoded row sees two latent rows each side


def test_tiles_are_those_of_diffusers() -> None:
    model, z = scaled_autoencoder(), noise((1, 4, 12, 10), 3)
    model.enable_tiling()
    with torch.no_grad():
        wanted = pixels_of(model.decode(z / 0.3 + 0.2).sample)
    model.disable_tiling()
    bands: list[tuple[int, Rows]] = []
    decode_tiled(model, z, rows=10, sink=lambda y, band: bands.append((y, band)))
    assert [(y, len(band)) for y, band in bands] == [(0, 10), (10, 10), (20, 4)]
    assert np.array_equal(np.concatenate([band for _, band in bands]), wanted)
    assert not model.use_tiling
