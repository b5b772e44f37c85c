"""The options of a request, written once for `hires generate` and `hires plan`.

An option that is not given is None: the preset, the recipe file and the model's card decide.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from hirescli.errors import RequestError

T = TypeVar("T")
_PICTURE, _DRAWING, _FILE, _RUN = "Picture", "How it is drawn", "Output file", "Run"


def preset_names(incomplete: str) -> list[str]:
    """Names of the shipped presets, for shell completion."""
    from hirescli import presets

    return [name for name in presets.names() if name.startswith(incomplete)]


def whole(text: str) -> int:
    """Read a whole number; its range is the recipe's matter."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f'"{text}" is no whole number; write digits only') from None


def number(text: str) -> float:
    """Read a number; its range is the recipe's matter."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f'"{text}" is no number; write it like 2.5') from None


def option(*names: str, panel: str, metavar: str | None, text: str, **more: Any) -> Any:
    """A typer option of ours: the help text carries unit, range and default itself."""
    return typer.Option(
        *names, metavar=metavar, help=text, rich_help_panel=panel, show_default=False, **more
    )


def paragraphs(docstring: str | None) -> str:
    """A docstring as help text: line ends only between paragraphs, the terminal wraps the rest."""
    parts = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(part.split()) for part in parts)


def words(*choices: str) -> Callable[[str], list[str]]:
    """Shell completion from fixed words; what is not among them is refused later, by name."""
    return lambda incomplete: [word for word in choices if word.startswith(incomplete)]


@dataclass(frozen=True)
class RequestOptions:
    """What a user says of one or more images."""

    prompt: Annotated[
        str | None,
        option(
            "-p",
            "--prompt",
            panel=_PICTURE,
            metavar="TEXT",
            text="What the picture shows; - reads it from stdin. Default: as preset or recipe.",
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        option(
            "-n",
            "--negative-prompt",
            panel=_PICTURE,
            metavar="TEXT",
            text="What the picture shall not show. Default: empty.",
        ),
    ] = None
    size: Annotated[
        str | None,
        option(
            "--size",
            panel=_PICTURE,
            metavar="N|WxH",
            text="Size in pixels: 2048 for a square, or 2048x1024; sides are multiples of what "
            "the model needs (8 for `builtin`), at most 1048576 px, the long one at most 4 times "
            "the short one. Default: the model's native size.",
        ),
    ] = None
    width: Annotated[
        int | None,
        option(
            "-W",
            "--width",
            panel=_PICTURE,
            metavar="PX",
            parser=whole,
            text="Width in pixels, with --height in place of --size. Default: see --size.",
        ),
    ] = None
    height: Annotated[
        int | None,
        option(
            "-H",
            "--height",
            panel=_PICTURE,
            metavar="PX",
            parser=whole,
            text="Height in pixels, with --width in place of --size. Default: see --size.",
        ),
    ] = None
    seed: Annotated[
        list[int] | None,
        option(
            "-s",
            "--seed",
            panel=_PICTURE,
            metavar="N",
            parser=whole,
            text="Seed of the noise, 0 to 9223372036854775807; give it several times for several "
            "images, the model is loaded once. The same seed gives the same bytes. Default: 0.",
        ),
    ] = None
    preset: Annotated[
        str | None,
        option(
            "--preset",
            panel=_PICTURE,
            metavar="NAME|FILE",
            text="Start from a partial recipe: a name of `hires presets list` or a .toml file; "
            "other options win over it. Default: none.",
            autocompletion=preset_names,
        ),
    ] = None
    recipe: Annotated[
        Path | None,
        option(
            "--recipe",
            panel=_PICTURE,
            metavar="FILE",
            text="Repeat an image: its recipe (.json), or the image itself (TIFF, PNG, JPEG); the "
            "preset and other options win over it. Default: none.",
        ),
    ] = None

    model: Annotated[
        str | None,
        option(
            "-m",
            "--model",
            panel=_DRAWING,
            metavar="NAME",
            text="Model that draws; this version has `builtin`. Default: builtin.",
            autocompletion=words("builtin"),
        ),
    ] = None
    revision: Annotated[
        str | None,
        option(
            "--revision",
            panel=_DRAWING,
            metavar="NAME",
            text="Revision of the model's weights. Default: the one at hand.",
        ),
    ] = None
    steps: Annotated[
        int | None,
        option(
            "--steps",
            panel=_DRAWING,
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
            panel=_DRAWING,
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
            panel=_DRAWING,
            metavar="NAME",
            text="Sampler of all stages; which ones work is the model's card's matter. "
            "Default: the model's card.",
        ),
    ] = None
    method: Annotated[
        str | None,
        option(
            "--method",
            panel=_DRAWING,
            metavar="sdedit",
            text="How a stage starts from the one before; sdedit adds noise and denoises the "
            "rest. Default: sdedit.",
            autocompletion=words("sdedit"),
        ),
    ] = None
    strengths: Annotated[
        str | None,
        option(
            "--strengths",
            panel=_DRAWING,
            metavar="X,X,...",
            text="Noise added in each upscaling stage, above 0 to 1, in order; the last repeats. "
            "Default: the model's card.",
        ),
    ] = None
    upscale_steps: Annotated[
        int | None,
        option(
            "--upscale-steps",
            panel=_DRAWING,
            metavar="N",
            parser=whole,
            text="Denoising steps run in each upscaling stage, 1 to 1000. Default: the model's "
            "card.",
        ),
    ] = None
    upscale_guidance_scale: Annotated[
        float | None,
        option(
            "--upscale-guidance-scale",
            panel=_DRAWING,
            metavar="X",
            parser=number,
            text="As --guidance-scale, in upscaling stages, 1 to 50. Default: the model's card.",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        option(
            "--dtype",
            panel=_DRAWING,
            metavar="float32|bfloat16",
            text="Numbers the model computes in. Default: the model's card.",
            autocompletion=words("float32", "bfloat16"),
        ),
    ] = None

    output: Annotated[
        str | None,
        option(
            "-o",
            "--output",
            panel=_FILE,
            metavar="FILE",
            text="File to write: .tif, .tiff, .png, .jpg or .jpeg; {seed} in it stands for the "
            "seed; a folder gets the default name. Default: made from prompt and seed, here.",
        ),
    ] = None
    format: Annotated[
        str | None,
        option(
            "--format",
            panel=_FILE,
            metavar="tiff|png|jpeg",
            text="Format of the file: tiff is a tiled BigTIFF with a pyramid of pages; jpeg holds "
            "at most 65500 px a side. Default: by the suffix of --output, else tiff.",
            autocompletion=words("tiff", "png", "jpeg"),
        ),
    ] = None
    tile: Annotated[
        int | None,
        option(
            "--tile",
            panel=_FILE,
            metavar="PX",
            parser=whole,
            text="Side of the TIFF's tiles in pixels, a multiple of 16 from 64 to 4096. "
            "Default: 512.",
        ),
    ] = None
    compression: Annotated[
        str | None,
        option(
            "--compression",
            panel=_FILE,
            metavar="deflate|lzw|jpeg|none",
            text="Compression inside the TIFF; jpeg loses detail, the others none. "
            "Default: deflate.",
            autocompletion=words("deflate", "lzw", "jpeg", "none"),
        ),
    ] = None
    quality: Annotated[
        int | None,
        option(
            "--quality",
            panel=_FILE,
            metavar="N",
            parser=whole,
            text="Quality of JPEG, in files and in TIFF tiles, 1 to 100. Default: 90.",
        ),
    ] = None
    dpi: Annotated[
        float | None,
        option(
            "--dpi",
            panel=_FILE,
            metavar="X",
            parser=number,
            text="Resolution for printing, in pixels per inch, 1 to 10000. Default: 300.",
        ),
    ] = None
    metadata: Annotated[
        bool | None,
        option(
            "--metadata/--no-metadata",
            panel=_FILE,
            metavar=None,
            text="Whether recipe, prompt and XMP go into the file; colour profile and resolution "
            "always do. Default: they do.",
        ),
    ] = None

    memory: Annotated[
        str | None,
        option(
            "--memory",
            panel=_RUN,
            metavar="BYTES",
            text="Memory the whole process may use, such as 8GB, 8GiB or 500MB; with more, less "
            "is spilled to disk. Default: what the model takes and 170 MB to work in.",
        ),
    ] = None
    host_memory: Annotated[
        str | None,
        option(
            "--host-memory",
            panel=_RUN,
            metavar="BYTES",
            text="Host memory for values that find no room on a GPU; on a CPU it says nothing. "
            "Default: three quarters of the installed memory.",
        ),
    ] = None
    spill: Annotated[
        Path | None,
        option(
            "--spill",
            panel=_RUN,
            metavar="DIR",
            text="Folder for values that find no room in memory; a fast disk helps. Default: the "
            "run's own folder beside the output.",
        ),
    ] = None
    rows: Annotated[
        int | None,
        option(
            "--rows",
            panel=_RUN,
            metavar="N",
            parser=whole,
            text="Band height that pictures are computed in, in latent rows, 1 to 4096. "
            "Default: from the size and the memory.",
        ),
    ] = None
    vae_mode: Annotated[
        str | None,
        option(
            "--vae-mode",
            panel=_RUN,
            metavar="MODE",
            text="How latents are decoded: banded is exact; tiled is diffusers' own tiling, which "
            "blends tiles, for comparison. Default: banded.",
            autocompletion=words("banded", "tiled"),
        ),
    ] = None
    vae_attention: Annotated[
        str | None,
        option(
            "--vae-attention",
            panel=_RUN,
            metavar="KIND",
            text="Of a decoder's middle block above 512x512 latents: pooled lets it attend to "
            "averages, exact to everything, in quadratic time. Default: pooled.",
            autocompletion=words("pooled", "exact"),
        ),
    ] = None

    def fragment(self) -> dict[str, Any]:
        """What was said, as a partial recipe without a seed.

        Raises:
            RequestError: If the strengths are no numbers.
        """
        renamed = {
            "width_px": self.width,
            "height_px": self.height,
            "tile_px": self.tile,
            "strengths": None if self.strengths is None else parse_strengths(self.strengths),
        }
        same = (
            "negative_prompt size model revision steps guidance_scale scheduler method "
            "upscale_steps upscale_guidance_scale dtype format compression quality dpi metadata "
            "rows vae_mode vae_attention prompt"
        )
        said = {key: getattr(self, key) for key in same.split()} | renamed
        return {key: value for key, value in said.items() if value is not None}


def parse_strengths(text: str) -> tuple[float, ...]:
    """Read "0.4,0.3"; whether the numbers make sense is the recipe's matter.

    Raises:
        RequestError: If a part is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(
            f'strengths "{text}" are not understood; write numbers like 0.4,0.3,0.2'
        ) from None


def takes_request(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command that takes `request: RequestOptions` first all options of a request."""
    fields = dataclasses.fields(RequestOptions)
    hints = get_type_hints(RequestOptions, include_extras=True)
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    def wrapper(**values: Any) -> T:
        said = {field.name: values.pop(field.name) for field in fields}
        return command(RequestOptions(**said), **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(f.name, keyword, default=f.default, annotation=hints[f.name])
        for f in fields
    ] + [parameter.replace(kind=keyword) for parameter in own]
    # typer reads both; `functools.wraps` would lead it back to the command itself.
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    return wrapper
