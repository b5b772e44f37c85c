"""Banded decoding and encoding equal the whole at every band height and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hirescli.models.builtin.autoencoder import ThinAutoencoder
from hirescli.vae.rows import decode_rows, encode_rows


def autoencoder(blocks: tuple[int, int, int]) -> ThinAutoencoder:
    torch.manual_seed(0)
    model = ThinAutoencoder(latent_channels=4, decoder_channels=(12, 8, 4), decoder_blocks=blocks)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


MODELS = [autoencoder((0, 0, 0)), autoencoder((1, 2, 1)), autoencoder((4, 2, 1))]


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
    z = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(seed))
    bands = list(decode_rows(model, z, rows=rows))
    assert [y for y, _ in bands] == list(range(0, 8 * height, 8 * rows))
    assert all(band.dtype == np.float32 for _, band in bands)
    with torch.no_grad():
        whole = model.decode(z).sample[0].permute(1, 2, 0) * 0.5 + 0.5
    made = np.concatenate([band for _, band in bands])
    assert made.shape == (8 * height, 8 * width, 3)
    largest = float(whole.abs().max())
    np.testing.assert_allclose(made, whole.numpy(), rtol=1e-4, atol=1e-5 * largest)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 12),
    height=st.integers(1, 10),
    width=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_encoded_in_bands_equals_whole(rows: int, height: int, width: int, seed: int) -> None:
    model, random = MODELS[1], np.random.default_rng(seed)
    picture = random.random((8 * height, 8 * width, 3), dtype=np.float32)
    bands = (picture[y : y + 8 * rows] for y in range(0, 8 * height, 8 * rows))
    size = {"width_px": 8 * width, "height_px": 8 * height}
    made = list(encode_rows(model, bands, **size))
    assert [row for row, _ in made] == list(range(0, height, rows))
    with torch.no_grad():
        whole = model.encode(torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1).latents
    latents = torch.cat([band for _, band in made], dim=2)
    torch.testing.assert_close(latents, whole, rtol=1e-4, atol=1e-5)


def test_bands_that_do_not_make_the_picture_are_our_mistake() -> None:
    band = np.zeros((8, 16, 3), np.float32)
    with pytest.raises(AssertionError, match="whole picture"):
        list(encode_rows(MODELS[0], [band], width_px=16, height_px=16))
    with pytest.raises(AssertionError, match="whole patches"):
        list(encode_rows(MODELS[0], [band[:5]], width_px=16, height_px=16))
