"""The options of a request, written once for all commands that make pictures.

An option that is not given is None: the preset, the recipe file and the model's card decide.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from hirescli.cli.options.drawing import DrawingOptions
from hirescli.cli.options.file import FileOptions
from hirescli.cli.options.guides import GuideOptions
from hirescli.cli.options.picture import PictureOptions
from hirescli.cli.options.run import RunOptions
from hirescli.errors import RequestError

T = TypeVar("T")


@dataclass(frozen=True)
class RequestOptions(RunOptions, FileOptions, DrawingOptions, GuideOptions, PictureOptions):
    """What a user says of one or more images."""

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
            "loras": self.lora or None,
            "controls": self.control or None,
            "image_prompts": self.image_prompt or None,
        }
        same = (
            "negative_prompt size model revision steps guidance_scale scheduler method "
            "upscale_steps upscale_guidance_scale dtype format compression quality dpi metadata "
            "rows vae_mode vae_attention vae_dtype attention adapter image_adapter init_image "
            "init_strength device prompt"
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
