"""Options of what guides the model beside the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from hirescli.cli.options.option import number, option

_PANEL = "Guides"


@dataclass(frozen=True)
class GuideOptions:
    """What guides the model beside the prompt."""

    lora: Annotated[
        list[str] | None,
        option(
            "--lora",
            panel=_PANEL,
            metavar="FILE[:X]",
            text="LoRA of the model's family, a .safetensors file, with its scale (-10 to 10, "
            "default 1); give it several times for several. Default: none.",
        ),
    ] = None
    control: Annotated[
        list[str] | None,
        option(
            "--control",
            panel=_PANEL,
            metavar="KIND=IMAGE[:X]",
            text="Picture that a ControlNet follows at every stage, such as canny=edges.png, with "
            "its scale (default 1). KIND is a name of the model's card (`hires models info`), or "
            "a ControlNet's folder, file or hub id. Give it several times for several. "
            "Default: none.",
        ),
    ] = None
    image_prompt: Annotated[
        list[str] | None,
        option(
            "--image-prompt",
            panel=_PANEL,
            metavar="IMAGE[:X]",
            text="Picture that says what to draw, by an IP-Adapter, with its scale (default 1); "
            "give it several times for several. Default: none.",
        ),
    ] = None
    image_adapter: Annotated[
        str | None,
        option(
            "--image-adapter",
            panel=_PANEL,
            metavar="PATH|ID",
            text="IP-Adapter that reads --image-prompt: a folder, or owner/name/path/file on the "
            "hub. Default: the model's card.",
        ),
    ] = None
    init_image: Annotated[
        str | None,
        option(
            "--init-image",
            panel=_PANEL,
            metavar="IMAGE",
            text="Picture that the base stage begins with in place of noise; it is resized to "
            "the base's size. Default: none.",
        ),
    ] = None
    init_strength: Annotated[
        float | None,
        option(
            "--init-strength",
            panel=_PANEL,
            metavar="X",
            parser=number,
            text="Noise added to --init-image, above 0 to 1; 1 leaves nothing of it. "
            "Default: 0.6.",
        ),
    ] = None
