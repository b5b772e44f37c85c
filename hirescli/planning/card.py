"""The card: facts about a model that planning needs without loading it."""

from __future__ import annotations

import gzip
import os
import re
import tomllib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from hirescli.errors import ConfigError
from hirescli.planning.trace import Trace

Positive = Annotated[int, Field(ge=1)]
COMPONENTS = ("denoiser", "decoder", "encoder")
# Of Stable Diffusion and FLUX: a ControlNet, and the denoiser that also reads what one gives.
CONTROL_COMPONENTS = ("controlnet", "controlled")
_ATTENDING = ("denoiser", "controlled")  # traces that differ by the denoiser's attention
# The libraries and one process of Python, before weights; measured on a CPU, rounded up.
_LIBRARIES_BYTES = 600 * 10**6
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
Attention = Literal["linear", "full"]
Pair = tuple[str, str]
Recorder = Callable[[str, str, Attention], Trace]
Strength = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=1, le=50)]


class Card(BaseModel):
    """Facts about one model: its sizes, its usual choices, and what it costs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    title: str
    family: Literal["builtin", "sd", "sdxl", "flux", "sd3"]
    revision: str = Field(min_length=1)  # of the weights; recipes record it
    licence: str
    # What the licence or the publisher asks beyond the terms, and what is run of it.
    notice: str = ""
    # Words of the subjects it was trained on; empty: anything.
    knows: tuple[str, ...] = ()

    # Where weights are published
    hub_id: str | None = None
    # What linearises its attention: LinFusion of a UNet, CLEAR of a transformer.
    adapter: Literal["linfusion", "clear"] | None = None
    adapter_id: str | None = None  # of that adapter on the hub, or its published name
    closed: bool = False  # whether all its parts are its own, and nothing plugs into it
    controls: tuple[Pair, ...] = ()  # kind of a control image, ControlNet on the hub
    image_adapter_id: str | None = None  # of an IP-Adapter: "owner/name/path/file.safetensors"
    image_encoder_id: str | None = None  # on the hub, of adapters that have none beside them

    # Geometry
    native_px: Positive
    usual_px: Positive | None = None  # side of a picture whose size is left open; None: native
    multiple_px: Positive
    min_px: Positive
    latent_channels: Positive
    vae_factor: Positive
    text_tokens: Positive
    text_channels: Positive  # of a token's state, as the denoiser reads it
    vae_scaling: float = Field(1.0, gt=0)  # latents of the denoiser for those of the autoencoder

    packs: Positive = 1  # latents on a side of what the denoiser is given as one token
    positions_px: Positive | None = None  # where a table of positions ends; None: there is none

    vae_tiling: bool = False  # whether its autoencoder has diffusers' own tiling
    vae_attention: bool = False  # whether its middle block attends

    # Choices that a recipe leaves open
    steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=1, le=50)
    # "free": a second call without the prompt; "embedded": the denoiser is told the scale.
    guidance: Literal["free", "embedded", "none"] = "free"
    scheduler: str
    schedulers: tuple[str, ...]  # all that may be asked for
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1)]
    # Denoising steps that each upscaling stage runs; the last repeats.
    upscale_steps: Annotated[tuple[Steps, ...], Field(min_length=1)]
    upscale_guidance_scale: Annotated[tuple[Guidance, ...], Field(min_length=1)]
    # Of upscaling stages: what the base of rotary embeddings is multiplied by, and whether the
    # schedule shifts with the size as at the base.
    upscale_ntk_factor: float = Field(1.0, ge=1)
    upscale_dynamic_shifting: bool = True
    dtype: Literal["float32", "bfloat16"]
    vae_dtype: Literal["float32", "bfloat16"] | None = None  # of the autoencoder; None: `dtype`

    # How the cascade goes on from the base
    # After a doubling: set back each channel's mean and deviation, or its mean only.
    colour_anchor: Literal["moments", "mean"] = "moments"
    # Put behind the prompt from this long side on: what captions of nearer views were given.
    scale_words: tuple[tuple[int, str], ...] = ()

    # Costs; what an operation takes is in the traces beside the card.
    base_memory_bytes: Positive  # the process with weights loaded in `dtype`
    weights_bytes: Positive  # of the files
    # Of every component, by its name in a folder; empty: `base_memory_bytes` says it.
    parameters: tuple[tuple[str, Positive], ...] = ()
    # Of an IP-Adapter: its image encoder, and what each picture adds to the denoiser.
    image_prompts: tuple[tuple[str, Positive], ...] = ()
    flops_per_second_per_core: float = Field(gt=0)  # in float32
    load_seconds: float = Field(ge=0)  # from the command to the first stage

    # Of the weights of CLEAR that are named, or known: in tokens; 1: anything fits.
    clear_window: Positive = Field(1, exclude=True, repr=False)
    clear_down_factor: Positive = Field(1, exclude=True, repr=False)

    folder: Path | None = Field(None, exclude=True, repr=False)  # where the card was read
    # Its name for traces, where another card has the same modules; None: its own.
    traced_as: str | None = Field(None, exclude=True, repr=False)
    # Records a trace that is not in the folder yet, for models whose card is not shipped, and
    # for ControlNets and image prompts of FLUX.
    recorder: Recorder | None = Field(None, exclude=True, repr=False)

    @field_validator(
        "knows",
        "strengths",
        "schedulers",
        "upscale_steps",
        "upscale_guidance_scale",
        mode="before",
    )
    @classmethod
    def _list_is_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value  # TOML has lists only

    @field_validator("scale_words", mode="before")
    @classmethod
    def _pairs_are_tuples(cls, value: object) -> object:
        return tuple(map(tuple, value)) if isinstance(value, list) else value

    @field_validator("controls", "parameters", "image_prompts", mode="before")
    @classmethod
    def _tables_are_tuples(cls, value: object) -> object:
        return tuple(value.items()) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Card:
        if self.multiple_px % self.vae_factor:
            raise ValueError("multiple_px must be a multiple of vae_factor")
        if self.native_px % self.multiple_px or self.min_px % self.multiple_px:
            raise ValueError("native_px and min_px must be multiples of multiple_px")
        # A base of 4:1 has a short side of half the native one.
        if self.min_px > self.native_px // 2:
            raise ValueError("min_px must be at most half of native_px")
        if self.scheduler not in self.schedulers:
            raise ValueError("scheduler must be one of schedulers")
        return self

    @property
    def default_px(self) -> int:
        """Side of a picture whose size is left open."""
        return self.usual_px or self.native_px

    def trace(self, component: str, dtype: str, attention: Attention = "linear") -> Trace:
        """What a component does; a decoder reads latents, an encoder pixels.

        With a recorder, a trace that is missing or cannot be read is recorded.

        Args:
            component: One of `COMPONENTS` or `CONTROL_COMPONENTS`, those with the layout of a
                ControlNet for FLUX behind them, such as "controlnet-5+10g", and those of FLUX's
                denoiser with the number of image prompts behind that, such as "denoiser-ip2".
            dtype: "float32" or "bfloat16".
            attention: Of the denoiser's self-attention: "linear" with the adapter mounted.

        Raises:
            ConfigError: If the card has no trace of it in this dtype.
        """
        path = trace_path(self, component, dtype, attention)
        try:
            return _read_trace(path)
        except ConfigError:  # not there yet, or cut off by a full disk
            if self.recorder is None:
                raise
            return self.recorder(component, dtype, attention)

    @property
    def denoiser_part(self) -> str:
        """The denoiser's name in a folder and among `parameters`."""
        return "transformer" if self.is_transformer else "unet"

    @property
    def is_transformer(self) -> bool:
        """Whether the denoiser is a transformer of text and picture that flows from noise."""
        return self.family in ("flux", "sd3")

    def calls_per_step(self, guidance_scale: float) -> int:
        """How often a step calls the denoiser."""
        return 2 if guidance_scale > 1 and self.guidance == "free" else 1

    @property
    def resident_components(self) -> tuple[str, ...]:
        """The components that stay when prompts are encoded and text encoders are gone."""
        return tuple(name for name, _ in self.parameters if not name.startswith("text_encoder"))

    def component_bytes(self, component: str, dtype: str) -> int:
        """Weights of one component, such as "unet", "vae" or "linfusion", in a dtype."""
        return dict(self.parameters)[component] * _DTYPE_BYTES[dtype]

    def resident_bytes(self, dtype: str | None, vae_dtype: str | None = None) -> int:
        """Weights where bands are computed, text encoders freed; the autoencoder in its dtype."""
        if not self.parameters:
            return self.weights_bytes
        dtype = dtype or self.dtype
        vae_dtype = vae_dtype or self.vae_dtype or dtype
        return sum(
            self.component_bytes(name, vae_dtype if name == "vae" else dtype)
            for name in self.resident_components
        )

    def text_bytes(self, dtype: str | None) -> int:
        """Weights of the text encoders, which are let go when prompts are encoded."""
        text = [name for name, _ in self.parameters if name.startswith("text_encoder")]
        return sum(self.component_bytes(name, dtype or self.dtype) for name in text)

    def process_bytes(self, dtype: str | None, vae_dtype: str | None = None) -> int:
        """The process on a CPU with all weights loaded, before any picture."""
        if not self.parameters:
            return self.base_memory_bytes
        return _LIBRARIES_BYTES + self.resident_bytes(dtype, vae_dtype) + self.text_bytes(dtype)

    def image_bytes(self, part: Literal["image_encoder", "image_adapter"], dtype: str) -> int:
        """Weights that image prompts take, by part.

        Of the published adapters: another one that is named is counted as these.
        """
        return dict(self.image_prompts).get(part, 0) * _DTYPE_BYTES[dtype]

    def scale_word(self, long_side_px: int) -> str:
        """What to put behind the prompt of a stage with this long side; "" for a whole view."""
        words = [word for from_px, word in sorted(self.scale_words) if long_side_px >= from_px]
        return words[-1] if words else ""

    def foreign_prompt_warning(self, prompt: str) -> str | None:
        """A warning for a prompt that names nothing the model was trained on, else None."""
        if not self.knows:
            return None
        words = set(re.findall(r"\w+", prompt.lower()))
        forms = {form for word in words for form in _forms(word)}
        if any(set(re.findall(r"\w+", subject.lower())) <= forms for subject in self.knows):
            return None
        return (
            f"the model `{self.name}` knows only {', '.join(self.knows)}; "
            "the picture may not follow this prompt; "
            "for other subjects choose a Stable Diffusion model with --model: `hires models list`"
        )


def _forms(word: str) -> set[str]:
    """A word and what it may be the plural of: skies, marshes, waves, nebulae."""
    forms = {word}
    for plural, singular in (("ies", "y"), ("es", ""), ("s", ""), ("ae", "a")):
        if word.endswith(plural):
            forms.add(word.removesuffix(plural) + singular)
    return forms


def read_card(path: Path) -> Card:
    """Read a card from TOML.

    Raises:
        ConfigError: If the file is missing, no TOML, or holds wrong facts (all together).
    """
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
        return Card.model_validate(facts | {"folder": path.parent})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(str(path), [str(error)]) from error
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(str(path), faults) from error


def trace_path(card: Card, component: str, dtype: str, attention: Attention = "linear") -> Path:
    """Where a card keeps the trace of a component."""
    assert card.folder is not None, "the card was not read from a file"
    name = card.traced_as or card.name
    parts = [name, component, dtype]
    if component.partition("-")[0] in _ATTENDING:
        parts.insert(2, attention)
    return card.folder / "traces" / f"{'.'.join(parts)}.json.gz"


def write_trace(
    card: Card, component: str, dtype: str, trace: Trace, attention: Attention = "linear"
) -> None:
    """Keep a trace beside its card; equal traces give equal files."""
    path = trace_path(card, component, dtype, attention)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(gzip.compress(trace.to_json().encode(), mtime=0))
    partial.replace(path)  # another process may record the same


@lru_cache(maxsize=32)
def _read_trace(path: Path) -> Trace:
    try:
        return Trace.from_json(gzip.decompress(path.read_bytes()).decode())
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(str(path), [f"no trace of a model ({error})"]) from error
