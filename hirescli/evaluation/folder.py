"""What a folder in diffusers layout says it holds. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from hirescli.errors import RequestError
from hirescli.evaluation.request import PX_PER_LATENT


def check_folder(folder: Path) -> None:
    """Read what a folder says it holds; no weights are read.

    Raises:
        RequestError: If it is no AutoencoderKL in diffusers layout, or not of factor 8.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, levels = config["_class_name"], len(config["block_out_channels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{folder} holds no model in diffusers layout ({error}); give the folder with the "
            "autoencoder's config.json in it, often called vae"
        ) from error
    if kind != "AutoencoderKL" or 2 ** (levels - 1) != PX_PER_LATENT:
        raise RequestError(
            f"{folder} holds a {kind} of {levels} levels; an AutoencoderKL of 4 can be measured"
        )
