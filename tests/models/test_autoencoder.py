"""The thin autoencoder: its principal components, its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hirescli.models.builtin.autoencoder import ThinAutoencoder


def tiny(blocks: tuple[int, int, int] = (1, 1, 1), *, seed: int = 0) -> ThinAutoencoder:
    """A small one with random weights everywhere, also where a fresh one starts at zero."""
    torch.manual_seed(seed)
    model = ThinAutoencoder(latent_channels=4, decoder_channels=(8, 6, 4), decoder_blocks=blocks)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


def pictures_of_few_components(count: int) -> torch.Tensor:
    """Pictures (8, 3, 32, 32) whose 8x8 patches are a mean and `count` patterns."""
    random = np.random.default_rng(5)
    patterns, mean = random.normal(0, 0.2, (count, 3, 8, 8)), random.normal(0, 0.1, (3, 8, 8))
    weights = random.normal(0, 1, (8, 4, 4, count)) * np.arange(count, 0, -1)
    patches = np.einsum("nyxk,kcij->ncyixj", weights, patterns) + mean[:, None, :, None, :]
    return torch.from_numpy(patches.reshape(8, 3, 32, 32)).float()


def test_components_reconstruct_what_they_span() -> None:
    pictures = pictures_of_few_components(4)
    model = ThinAutoencoder(latent_channels=4, decoder_channels=(8, 6, 4))
    model.start_from_components(pictures)
    with torch.no_grad():  # the convolutional correction starts at zero
        torch.testing.assert_close(model(pictures), pictures, rtol=0, atol=1e-4)
        latents = model.encode(pictures).latents
    assert latents.shape == (8, 4, 4, 4)
    assert latents.mean().abs() < 1e-3
    std = latents.transpose(0, 1).flatten(1).std(1)
    assert torch.equal(std.argsort(descending=True), torch.arange(4))
    assert float(std.square().mean()) == pytest.approx(1, rel=0.05)


def test_saved_and_loaded_gives_the_same(tmp_path: Path) -> None:
    model = tiny((2, 1, 0)).float()
    model.save_pretrained(tmp_path)
    read = ThinAutoencoder.from_pretrained(tmp_path, local_files_only=True)
    z = torch.randn(1, 4, 3, 5)
    with torch.no_grad():
        assert torch.equal(read.decode(z).sample, model.decode(z).sample)
