"""ControlNets for FLUX: whether one fits a model, and what of it a plan needs. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hirescli.errors import RequestError
from hirescli.planning.card import Card

CLASS = "FluxControlNetModel"
# Of both configs: widths that a ControlNet shares with the transformer that it is a copy of.
SHARED: dict[str, Any] = {
    "in_channels": 64, "attention_head_dim": 128, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
_OTHERS = {
    "ControlNetModel": "a Stable Diffusion model with a UNet",
    "SD3ControlNetModel": "Stable Diffusion 3.5",
}
# Keys of what is not run, and what each says of a ControlNet.
_NOT_RUN = {
    "num_mode": "is several in one and has to be told which",
    "conditioning_embedding_channels": "reads pixels and not latents, and repeats what it gives",
    "extra_condition_channels": "reads a mask beside the picture",
}


@dataclass(frozen=True)
class ControlLayout:
    """What decides the operations of a ControlNet beside its transformer.

    Attributes:
        double: Its blocks with text apart.
        single: Its blocks of one stream.
        guided: Whether it is told the guidance scale.
    """

    double: int
    single: int
    guided: bool

    def __str__(self) -> str:
        """As recipes have it, such as "5+10g"."""
        return f"{self.double}+{self.single}{'g' if self.guided else ''}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """That of a recipe."""
        double, single = text.removesuffix("g").split("+")
        return cls(int(double), int(single), text.endswith("g"))

    @property
    def config(self) -> dict[str, Any]:
        """As diffusers' config has it."""
        return {
            "num_layers": self.double,
            "num_single_layers": self.single,
            "guidance_embeds": self.guided,
        }


def flux_layout(
    where: Path, config: Mapping[str, Any], transformer: Mapping[str, Any], card: Card
) -> ControlLayout:
    """The layout of a ControlNet that was made for a model.

    Args:
        where: Its folder or hub id.
        config: Its config.
        transformer: The denoiser's config.
        card: Of the model.

    Raises:
        RequestError: If it is of another kind or family.
    """
    kind = config.get("_class_name")
    if kind in _OTHERS:
        raise RequestError(
            f"{where} is a ControlNet for {_OTHERS[kind]} ({kind}); model `{card.name}` is FLUX: "
            "use one made for that"
        )
    if kind != CLASS:
        raise RequestError(f"{where} is a {kind}, which is not run with FLUX; it takes {CLASS}")
    _check_run(where, config)
    _check_widths(where, config, transformer, card)
    double, single = (config.get(key, usual) for key, usual in _BLOCKS.items())
    if not (_counts(double) and _counts(single) and double + single):
        raise RequestError(f"{where} has no blocks: num_layers {double} and {single}")
    return ControlLayout(double, single, bool(config.get("guidance_embeds")))


_BLOCKS = {"num_layers": 19, "num_single_layers": 38}


def _counts(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _check_run(where: Path, config: Mapping[str, Any]) -> None:
    for key, said in _NOT_RUN.items():
        if config.get(key):
            raise RequestError(
                f"{where} is a ControlNet that {said} ({key} in its config.json): this version "
                "does not run it; use one of a single kind that reads latents"
            )


def _check_widths(
    where: Path, config: Mapping[str, Any], transformer: Mapping[str, Any], card: Card
) -> None:
    for key, usual in SHARED.items():
        own, wanted = (each.get(key) or usual for each in (config, transformer))
        if own != wanted:
            raise RequestError(
                f"{where} is a ControlNet for another model than `{card.name}`: its {key} is "
                f"{own}, that of the transformer {wanted}"
            )
