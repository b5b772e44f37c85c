"""`hires train`: make the built-in model from nothing."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Make the built-in model from nothing: render, autoencoder, denoiser, export.",
    no_args_is_help=True,
)
