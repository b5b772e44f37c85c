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
from hirescli.planning.print_size import parse_print

T = TypeVar("T")


@dataclass(frozen=True)
class RequestOptions(RunOptions, FileOptions, DrawingOptions, GuideOptions, PictureOptions):
    """What a user says of one or more images."""

    def fragment(self) -> dict[str, Any]:
        """What was said, as a partial recipe without a seed.

        Raises:
            RequestError: If strengths or steps are no numbers, or --print is no size or stands
                beside another one.
        """
        renamed = {
            "width_px": self.width,
            "height_px": self.height,
            "tile_px": self.tile,
            "strengths": _parsed("strengths", self.strengths, float, "0.4,0.3,0.2"),
            "upscale_steps": _parsed("upscale steps", self.upscale_steps, int, "4,3,2"),
            "upscale_guidance_scale": _parsed(
                "upscale guidance scales", self.upscale_guidance_scale, float, "3,3,1"
            ),
            "loras": self.lora or None,
            "controls": self.control or None,
            "image_prompts": self.image_prompt or None,
        }
        same = (
            "negative_prompt size model revision steps guidance_scale scheduler method "
            "dtype format bits compression pyramid tile_layout tile_format "
            "quality dpi metadata "
            "rows vae_mode vae_attention vae_dtype attention adapter image_adapter init_image "
            "init_strength device prompt"
        )
        said = {key: getattr(self, key) for key in same.split()} | renamed
        return {key: value for key, value in said.items() if value is not None} | self._printed()

    def _printed(self) -> dict[str, Any]:
        """The size that --print asks for."""
        if self.print_ is None:
            return {}
        beside = [
            f"--{key}"
            for key in ("size", "width", "height", "dpi")
            if getattr(self, key) is not None
        ]
        if beside:
            raise RequestError(f"--print says size and dpi: leave {' and '.join(beside)} out")
        return parse_print(self.print_).fragment()


def _parsed(
    what: str, text: str | None, number: Callable[[str], T], example: str
) -> tuple[T, ...] | None:
    """Read "0.4,0.3"; whether the numbers make sense is the recipe's matter."""
    if text is None:
        return None
    try:
        return tuple(number(part) for part in text.split(","))
    except ValueError:
        raise RequestError(
            f'{what} "{text}" are not understood; write numbers like {example}'
        ) from None


def takes(*kinds: type[Any]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command, whose first parameters are of these dataclasses, all their options."""
    hints = [get_type_hints(kind, include_extras=True) for kind in kinds]
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
            annotation=hint[field.name],
        )
        for kind, hint in zip(kinds, hints, strict=True)
        for field in dataclasses.fields(kind)
    ]  # fmt: skip

    def decorate(command: Callable[..., T]) -> Callable[..., T]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(kinds) :]

        def wrapper(**values: Any) -> T:
            said = [
                kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
                for kind in kinds
            ]
            return command(*said, **values)

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [*(each.replace(kind=keyword) for each in own), *options]
        # typer reads both; `functools.wraps` would lead it back to the command itself.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        return wrapper

    return decorate
