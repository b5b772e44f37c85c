"""Export: from two training states to the folder that the built-in model is loaded from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hirescli.errors import RunError
from hirescli.models.sums import write_sums
from hirescli.training import autoencoder, denoiser

if TYPE_CHECKING:
    from pathlib import Path


def export(*, autoencoder_state: Path, denoiser_state: Path, folder: Path) -> None:
    """Write the averaged weights in diffusers layout: vae, unet, linfusion, scheduler; and
    the checksums of all files.

    Raises:
        RequestError: If a file is no state of its model; nothing is written then.
        RunError: If the folder cannot be written.
    """
    denoiser.load(denoiser_state)  # both are tried before anything is written
    autoencoder.load(autoencoder_state)
    try:
        autoencoder.export(autoencoder_state, folder / "vae")
        denoiser.export(denoiser_state, folder)
        write_sums(folder)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error
