"""The recipe: every choice of one image. None in a field means that the card decides."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from hirescli.errors import ConfigError, RequestError
from hirescli.plugins import Control, ImagePrompt, Lora, Picture
from hirescli.units import parse_size

Strength = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=1, le=50)]
# Set by a run, not chosen by anybody: they take no part in the hash and are never read back.
CONSEQUENCES = frozenset({"truncated_to_tokens", "negative_truncated_to_tokens"})
# What belongs to a choice: with another one it says nothing.
_IDENTITIES = {
    "model": ("revision", "adapter_revision", "image_adapter_revision"),
    "adapter": ("adapter_revision",),
    "image_adapter": ("image_adapter_revision",),
}
_ALLOWED_CONTROLS = "\t\n\r"


class Recipe(BaseModel):
    """Every choice of one image; equal recipes give equal bytes.

    Besides its fields it takes `size` (256, "2048" or "2048x1024") in place of
    `width_px` and `height_px`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str
    negative_prompt: str = ""
    width_px: int = Field(ge=1)
    height_px: int = Field(ge=1)
    seed: int = Field(0, ge=0, le=2**63 - 1)
    model: str = Field("builtin", min_length=1)
    revision: str | None = None
    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=1, le=50)
    scheduler: str | None = None
    method: Literal["sdedit", "skip"] = "sdedit"
    # One per upscaling stage; the last repeats. A number alone is for all.
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1)] | None = None
    upscale_steps: Annotated[tuple[Steps, ...], Field(min_length=1)] | None = None
    upscale_guidance_scale: Annotated[tuple[Guidance, ...], Field(min_length=1)] | None = None
    # "auto": the model's own attention where it is quick, an adapter's linear one above.
    attention: Literal["auto", "linear", "full"] = "auto"
    adapter: str | None = None  # LinFusion weights: a folder or a hub id
    # Of these weights, or of those that the model's card names: a commit, or a digest "local-...".
    adapter_revision: str | None = None
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    image_adapter: str | None = None  # IP-Adapter: a folder, or a file on the hub
    image_adapter_revision: str | None = None  # of it, or of the one that the card names
    init_image: Picture | None = None  # what the base stage begins with, in place of noise
    init_strength: Strength | None = None
    source: Picture | None = None  # the picture that is enlarged; there is no base stage then
    device: Literal["cpu", "cuda"] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    vae_dtype: Literal["float32", "bfloat16"] | None = None
    # Band height in latent rows: rounding depends on it.
    rows: int | None = Field(None, ge=1, le=4096)
    # Threads of computing: the order of sums, and so rounding, depends on them.
    threads: int | None = Field(None, ge=1, le=1024)
    vae_mode: Literal["banded", "tiled"] = "banded"
    vae_attention: Literal["pooled", "exact"] = "pooled"
    format: Literal["tiff", "png", "jpeg", "webp", "avif", "tiles", "print"] = "tiff"
    bits: Literal[8, 16] = 8  # of a sample in the file
    tile_px: int = Field(512, ge=64, le=4096, multiple_of=16)
    compression: Literal["deflate", "lzw", "zstd", "jpeg", "none"] = "deflate"
    pyramid: Literal["pages", "subifd", "none"] = "pages"  # how a TIFF holds its smaller levels
    tile_layout: Literal["dz", "zoomify", "iiif3"] = "dz"  # of tiles as files of their own
    tile_format: Literal["jpeg", "png"] = "jpeg"
    quality: int = Field(90, ge=1, le=100)
    dpi: float = Field(300, ge=1, le=10_000)
    metadata: bool = True
    truncated_to_tokens: int | None = Field(None, ge=1)
    negative_truncated_to_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _take_size(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        try:
            return expand_size(data)
        except RequestError as error:
            raise ValueError(str(error)) from error

    @field_validator("loras", "controls", "image_prompts", mode="before")
    @classmethod
    def _list_is_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value  # TOML and JSON have lists

    @field_validator("strengths", "upscale_steps", "upscale_guidance_scale", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, int | float) else cls._list_is_tuple(value)

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _clean_text(cls, value: str) -> str:
        return clean_prompt(value)

    @model_validator(mode="after")
    def _prompt_says_something(self) -> Recipe:
        if not self.prompt and self.source is None:
            raise ValueError("prompt: is empty; say what the picture shows")
        return self

    @property
    def hash(self) -> str:
        """SHA-256 (hex) over the canonical JSON of all choices."""
        choices = self.model_dump(mode="json", exclude=set(CONSEQUENCES))
        return hashlib.sha256(_canonical(choices).encode()).hexdigest()

    def to_json(self, *, indent: int | None = None) -> str:
        """The recipe as JSON with sorted keys; `indent=None` gives the canonical one line."""
        data = self.model_dump(mode="json")
        if indent is None:
            return _canonical(data)
        return json.dumps(data, sort_keys=True, ensure_ascii=False, indent=indent)

    @classmethod
    def from_json(cls, text: str, *, source: str = "recipe") -> Recipe:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: If the text is no JSON object or holds wrong choices.
        """
        return cls.from_fragments(read_json_fragment(text, source=source), source=source)

    @classmethod
    def from_fragments(cls, *fragments: Mapping[str, Any], source: str = "the request") -> Recipe:
        """Merge partial recipes into one.

        Args:
            fragments: Partial recipes; a later one wins. `size` in one replaces the width and
                height of those before it. None means "not said".
            source: How messages call the origin of the choices.

        Raises:
            ConfigError: With all faults together.
        """
        merged: dict[str, Any] = {}
        faults: list[str] = []
        for fragment in fragments:
            try:
                said = expand_size(fragment)
            except RequestError as error:
                faults.append(str(error))
                said = {key: value for key, value in fragment.items() if key != "size"}
                said |= {"width_px": 1, "height_px": 1}  # reported above; not a second time
            said = {key: value for key, value in said.items() if value is not None}
            merged = _without_identities(merged, said) | said
        for key in CONSEQUENCES:
            merged.pop(key, None)
        try:
            recipe = cls.model_validate(merged)
        except ValidationError as error:
            faults += [f"{key}: {text}" if key else text for key, text in _faults(error)]
        if faults:
            raise ConfigError(source, faults)
        return recipe


def _without_identities(before: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Choices without what tells which weights they were made with, where others are named."""
    kept = dict(before)
    other = {key for key in _IDENTITIES if key in said and said[key] != before.get(key)}
    if "model" not in before:  # nothing was said of another one
        other.discard("model")
    for name in {each for key in other for each in _IDENTITIES[key]}:
        kept.pop(name, None)
    if "model" in other and isinstance(kept.get("controls"), list | tuple):
        kept["controls"] = [
            {k: v for k, v in each.items() if k not in ("revision", "layout")}
            if isinstance(each, dict)
            else each
            for each in kept["controls"]
        ]
    return kept


def clean_prompt(text: str) -> str:
    """Strip byte-order marks and line ends from a prompt.

    Raises:
        ValueError: If it holds a control character (XMP cannot hold one) or broken Unicode.
    """
    for character in text:
        if unicodedata.category(character) == "Cc" and character not in _ALLOWED_CONTROLS:
            raise ValueError(f"holds the control character U+{ord(character):04X}; remove it")
        if 0xD800 <= ord(character) <= 0xDFFF or character in "\ufffe\uffff":
            raise ValueError("is not valid UTF-8; check the encoding of the terminal or file")
    text = text.replace("\ufeff", "").replace("\r\n", " ")
    return text.replace("\r", " ").replace("\n", " ").strip()


def expand_size(fragment: Mapping[str, Any]) -> dict[str, Any]:
    """The fragment with `size` replaced by `width_px` and `height_px`.

    Raises:
        RequestError: If `size` is no size, or stands beside a width or height.
    """
    expanded = dict(fragment)
    size = expanded.pop("size", None)
    if size is None:
        return expanded
    if not isinstance(size, int | str):
        raise RequestError(f"size: {size!r} is not understood; write 2048 or 2048x1024")
    beside = [key for key in ("width_px", "height_px") if expanded.get(key) is not None]
    if beside:
        raise RequestError(f"size: stands beside {' and '.join(beside)}; give one or the other")
    expanded["width_px"], expanded["height_px"] = parse_size(size)
    return expanded


def fragment_faults(fragment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All faults of a partial recipe as `(key, message)`; missing keys are none."""
    faults: list[tuple[str, str]] = []
    try:
        data = expand_size(fragment)
    except RequestError as error:
        faults.append(("size", str(error).removeprefix("size: ")))
        data = {key: value for key, value in fragment.items() if key != "size"}
    required = {"prompt": "a picture", "width_px": 1024, "height_px": 1024}
    try:
        Recipe.model_validate(required | data)
    except ValidationError as error:
        faults += _faults(error)
    return faults


def read_json_fragment(text: str, *, source: str) -> dict[str, Any]:
    """Read a JSON object, strictly: no doubled key, no NaN.

    Raises:
        ConfigError: If it is none.
    """
    faults: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        doubled = sorted({key for key in keys if keys.count(key) > 1})
        faults.extend(f"{key}: stands there twice; keep one" for key in doubled)
        return dict(items)

    try:
        data = json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise ConfigError(source, [f"is no JSON: {error}"]) from error
    if not isinstance(data, dict):
        raise ConfigError(source, ["is no JSON object with the choices of a recipe"])
    if faults:
        key_faults = [f"{key}: {text}" for key, text in fragment_faults(data)]
        raise ConfigError(source, faults + key_faults)
    return data


def read_recipe_file(path: Path) -> dict[str, Any]:
    """Read a recipe written as JSON (images are the output layer's matter).

    Returns:
        A fragment for `Recipe.from_fragments`, already free of faults by itself.

    Raises:
        ConfigError: If the file is missing, no UTF-8 text, no JSON object, or holds faults.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"is no UTF-8 text (byte {error.start})"]) from error
    fragment = read_json_fragment(text, source=str(path))
    if isinstance(fragment.get("file"), dict):  # what `hires info --json` says of the picture
        del fragment["file"]
    faults = [f"{key}: {text}" for key, text in fragment_faults(fragment)]
    if faults:
        raise ConfigError(str(path), faults)
    return fragment


def _canonical(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _faults(error: ValidationError) -> list[tuple[str, str]]:
    return [_fault(item) for item in error.errors()]


def _fault(item: ErrorDetails) -> tuple[str, str]:
    """The key and what is wrong with it; what says its key itself is about several."""
    key, message = ".".join(map(str, item["loc"])), _message(item)
    said, colon, rest = message.partition(": ")
    return (said, rest) if not key and colon and said.isidentifier() else (key, message)


def _message(item: ErrorDetails) -> str:
    """One fault in our words: the value, what is allowed, the remedy."""
    if item["type"] == "missing":
        return "is missing; give it as a flag, in a preset or in a recipe"
    if item["type"] == "extra_forbidden":
        known = ", ".join(key for key in Recipe.model_fields if key not in CONSEQUENCES)
        return f"is no choice of a recipe; known are size, {known}"
    if item["type"] == "too_short":
        return "is empty; give at least one value, or leave it out"
    if item["type"] == "value_error":
        return item["msg"].removeprefix("Value error, ")
    wanted = item["msg"].removeprefix("Input should be ")
    return f"{_shown(item['input'])} does not work; it must be {wanted}"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."
