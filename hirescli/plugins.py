"""What plugs into a model or goes in beside the prompt: LoRAs, control images, pictures.

Each names a local file. Its SHA-256 and, for pictures, its size are filled in before planning
(`hirescli/output/inputs.py`), so that a recipe says what it was made from, not only where it lay.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scale = Annotated[float, Field(ge=-10, le=10)]
# A number behind the last colon; a drive letter or a path of digits is none.
_SCALED = re.compile(r"(?P<file>.+):(?P<scale>[+-]?(?:\d+\.?\d*|\.\d+))")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    path: str = Field(min_length=1)
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # None: not looked at yet

    @model_validator(mode="before")
    @classmethod
    def _text_is_parsed(cls, data: Any) -> Any:
        return cls._parsed(data) if isinstance(data, str) else data

    @classmethod
    def _parsed(cls, text: str) -> dict[str, Any]:
        return {"path": text}

    def identified(self, **facts: Any) -> Self:
        """The same with what is known of the file."""
        return self.model_copy(update=facts)


class Picture(_File):
    """A picture that is read.

    Attributes:
        width_px, height_px: As it is seen, after any rotation that it asks for.
    """

    width_px: int | None = Field(None, ge=1)
    height_px: int | None = Field(None, ge=1)


class Lora(_File):
    """Low-rank changes to a model's weights, written "FILE" or "FILE:SCALE".

    Attributes:
        size_bytes: Of the file.
    """

    scale: Scale = 1.0
    size_bytes: int | None = Field(None, ge=0)

    @classmethod
    def _parsed(cls, text: str) -> dict[str, Any]:
        return _scaled(text)


class ImagePrompt(Picture):
    """A picture that says what to draw beside the prompt, written "IMAGE" or "IMAGE:SCALE"."""

    scale: Scale = 1.0

    @classmethod
    def _parsed(cls, text: str) -> dict[str, Any]:
        return _scaled(text)


class Control(Picture):
    """A picture that a ControlNet follows, written "KIND=IMAGE" or "KIND=IMAGE:SCALE".

    Attributes:
        kind: A name that the model's card knows, such as "canny", or where a ControlNet is:
            a folder, a .safetensors file or a hub id.
        revision: Of that ControlNet's weights: a commit on the hub, or a digest "local-...".
        layout: Of one for FLUX its blocks of both kinds, and "g" where it is told the guidance
            scale, such as "5+10g": what it takes depends on that. None: of a UNet, or not
            looked at yet.
    """

    kind: str = Field(min_length=1)
    revision: str | None = None
    layout: str | None = Field(None, pattern=r"^\d+\+\d+g?$")
    scale: Scale = 1.0

    @classmethod
    def _parsed(cls, text: str) -> dict[str, Any]:
        kind, equals, rest = text.partition("=")
        if not equals or not kind or not rest:
            raise ValueError(f'"{text}" is no control; write KIND=IMAGE, like canny=edges.png')
        return {"kind": kind, **_scaled(rest)}


def _scaled(text: str) -> dict[str, Any]:
    match = _SCALED.fullmatch(text)
    if match is None:
        return {"path": text}
    return {"path": match["file"], "scale": float(match["scale"])}
