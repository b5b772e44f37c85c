"""The card: facts about a model that planning needs without loading it."""

from __future__ import annotations

import gzip
import re
import tomllib
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
Strength = Annotated[float, Field(gt=0, le=1)]


class Card(BaseModel):
    """Facts about one model: its sizes, its usual choices, and what it costs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str = Field(min_length=1)
    title: str
    family: Literal["sd"]
    revision: str = Field(min_length=1)  # of the weights; recipes record it
    licence: str
    # Words of the subjects it was trained on; empty: anything.
    knows: tuple[str, ...] = ()
    adapter: Literal["linfusion"] | None = None

    # Geometry
    native_px: Positive
    multiple_px: Positive
    min_px: Positive
    latent_channels: Positive
    vae_factor: Positive
    text_tokens: Positive

    vae_tiling: bool = False  # whether its autoencoder has diffusers' own tiling
    vae_attention: bool = False  # whether its middle block attends

    # Choices that a recipe leaves open
    steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=1, le=50)
    scheduler: str
    schedulers: tuple[str, ...]  # all that may be asked for
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1)]
    upscale_steps: int = Field(ge=1, le=1000)
    upscale_guidance_scale: float = Field(ge=1, le=50)
    dtype: Literal["float32", "bfloat16"]

    # How the cascade goes on from the base
    # After a doubling: set back each channel's mean and deviation, or its mean only.
    colour_anchor: Literal["moments", "mean"] = "moments"
    # Put behind the prompt from this long side on: what captions of nearer views were given.
    scale_words: tuple[tuple[int, str], ...] = ()

    # Costs; what an operation takes is in the traces beside the card.
    base_memory_bytes: Positive  # the process with weights loaded
    weights_bytes: Positive
    flops_per_second_per_core: float = Field(gt=0)
    load_seconds: float = Field(ge=0)  # from the command to the first stage

    folder: Path | None = Field(None, exclude=True, repr=False)  # where the card was read

    @field_validator("knows", "strengths", "schedulers", mode="before")
    @classmethod
    def _list_is_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value  # TOML has lists only

    @field_validator("scale_words", mode="before")
    @classmethod
    def _pairs_are_tuples(cls, value: object) -> object:
        return tuple(map(tuple, value)) if isinstance(value, list) else value

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

    def trace(self, component: str, dtype: str) -> Trace:
        """What a component does: "denoiser", "decoder" (from latents) or "encoder" (from pixels).

        Raises:
            ConfigError: If the card has no trace of it in this dtype.
        """
        return _read_trace(trace_path(self, component, dtype))

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
            "for other subjects a Stable Diffusion model is needed (--model FOLDER); "
            "this version runs the built-in one only"
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


def trace_path(card: Card, component: str, dtype: str) -> Path:
    """Where a card keeps the trace of a component."""
    assert card.folder is not None, "the card was not read from a file"
    return card.folder / "traces" / f"{card.name}.{component}.{dtype}.json.gz"


def write_trace(card: Card, component: str, dtype: str, trace: Trace) -> None:
    """Keep a trace beside its card; equal traces give equal files."""
    path = trace_path(card, component, dtype)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(trace.to_json().encode(), mtime=0))


@lru_cache(maxsize=32)
def _read_trace(path: Path) -> Trace:
    try:
        return Trace.from_json(gzip.decompress(path.read_bytes()).decode())
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(str(path), [f"no trace of a model ({error})"]) from error
