"""Options that say how the picture is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hirescli.cli.options.option import number, option, whole, words

_PANEL = "How it is drawn"


@dataclass(frozen=True)
class DrawingOptions:
    """How the picture is drawn."""

    model: Annotated[
        str | None,
        option(
            "-m",
            "--model",
            panel=_PANEL,
            metavar="MODEL",
            text="Model that draws: a name of `hires models list`, a diffusers folder, a single "
            ".safetensors file, or a hub id. Default: builtin.",
            autocompletion=words("builtin", "sd15", "sd21", "sdxl"),
        ),
    ] = None
    revision: Annotated[
        str | None,
        option(
            "--revision",
            panel=_PANEL,
            metavar="NAME",
            text="Revision of the model's weights. Default: the one at hand.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        option(
            "--steps",
            panel=_PANEL,
            metavar="N",
            parser=whole,
            text="Denoising steps of the base stage, 1 to 1000. Default: the model's card.",
        ),
    ] = None
    guidance_scale: Annotated[
        float | None,
        option(
            "--guidance-scale",
            "--cfg-scale",
            panel=_PANEL,
            metavar="X",
            parser=number,
            text="How strictly the base stage follows the prompt, 1 to 50; 1 is no guidance and "
            "half the work. Default: the model's card.",
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        option(
            "--scheduler",
            panel=_PANEL,
            metavar="NAME",
            text="Sampler of all stages; which ones work is the model's card's matter. "
            "Default: the model's card.",
        ),
    ] = None
    method: Annotated[
        str | None,
        option(
            "--method",
            panel=_PANEL,
            metavar="sdedit|skip",
            text="How a stage starts from the one before: sdedit adds noise and denoises the "
            "rest; skip also draws it back to that picture at every step and mixes in a "
            "prediction with dilated convolutions, in twice the time. Default: sdedit.",
            autocompletion=words("sdedit", "skip"),
        ),
    ] = None
    strengths: Annotated[
        str | None,
        option(
            "--strengths",
            "--strength",
            panel=_PANEL,
            metavar="X,X,...",
            text="Noise added in each upscaling stage, above 0 to 1, in order; the last repeats. "
            "Default: the model's card.",
        ),
    ] = None
    upscale_steps: Annotated[
        str | None,
        option(
            "--upscale-steps",
            panel=_PANEL,
            metavar="N,N,...",
            text="Denoising steps run in each upscaling stage, 1 to 1000, in order; the last "
            "repeats. Default: the model's card.",
        ),
    ] = None
    upscale_guidance_scale: Annotated[
        str | None,
        option(
            "--upscale-guidance-scale",
            panel=_PANEL,
            metavar="X,X,...",
            text="As --guidance-scale, in each upscaling stage, 1 to 50, in order; the last "
            "repeats. Default: the model's card.",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            panel=_PANEL,
            metavar="float32|bfloat16",
            text="Numbers the model computes in. Default: the model's card.",
            autocompletion=words("float32", "bfloat16"),
        ),
    ] = None
    vae_dtype: Annotated[
        str | None,
        option(
            "--vae-dtype",
            panel=_PANEL,
            metavar="float32|bfloat16",
            text="Numbers the autoencoder computes in. Default: the model's card.",
            autocompletion=words("float32", "bfloat16"),
        ),
    ] = None
    attention: Annotated[
        str | None,
        option(
            "--attention",
            panel=_PANEL,
            metavar="auto|linear|full",
            text="Self-attention of the denoiser: full is the model's own, linear an adapter's; "
            "auto is full up to 1024x1024 px, where it is as quick, and linear above. "
            "Default: auto.",
            autocompletion=words("auto", "linear", "full"),
        ),
    ] = None
    adapter: Annotated[
        str | None,
        option(
            "--adapter",
            panel=_PANEL,
            metavar="PATH|ID",
            text="Linear attention: LinFusion's folder or hub id, or CLEAR's file or name such as "
            "clear-16. Default: the model's card.",
        ),
    ] = None
