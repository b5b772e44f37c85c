"""CLEAR: attention to the neighbourhood in place of every attention of FLUX or SD3."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hirescli.attention.clear_mount import attentions, check_mountable
from hirescli.attention.clear_processor import Settings, TokenGrid, geometry_of
from hirescli.attention.clear_published import Variant
from hirescli.attention.clear_weights import find_weights, read_weights, write_weights
from hirescli.errors import RequestError
from hirescli.training.distill.local import LocalAttention
from hirescli.training.distill.methods import Students
from hirescli.training.distill.outputs import ABOUT_KEY, Output
from hirescli.training.distill.targets import Found, Target


@dataclass(frozen=True)
class Clear:
    """The method with its settings.

    Attributes:
        variant: Window and down factor.
    """

    variant: Variant
    name: str = "clear"

    def settings(self) -> dict[str, Any]:
        """As of `Method`."""
        return {"window": self.variant.window, "down_factor": self.variant.down_factor}

    def check(self, found: Found, side_px: int) -> None:
        """As of `Method`: the window fits a picture, the down factor divides it, and there are
        positions for it.
        """
        assert found.source is not None
        ends_px = found.source.card.positions_px
        if ends_px and side_px > ends_px:
            raise RequestError(
                f"--resolution {side_px} is beyond the table of positions of {found.name}, which "
                f"ends at {ends_px} px; give at most that"
            )
        side = side_px // found.multiple_px
        try:
            geometry_of(TokenGrid(side, side), self._settings(found.family), 0)
        except RequestError as error:
            raise RequestError(
                f"--resolution {side_px} is {side}x{side} tokens of {found.multiple_px} px: "
                f"{error} (--resolution, --window, --down-factor)"
            ) from error

    def students(self, target: Target, side_px: int, start: str | None) -> Students:
        """As of `Method`."""
        check_mountable(target.denoiser)
        side = side_px // target.model.card.multiple_px
        settings, grid = self._settings(target.family), TokenGrid(side, side)
        modules = {
            name: LocalAttention(attn, settings, grid).train()
            for name, attn in list(attentions(target.denoiser))
        }
        if start is not None:
            self._begin(target, modules, start)
        return Students(modules, nn.ModuleList(modules.values()))

    def publish(self, students: Students, output: Output, about: Mapping[str, Any]) -> None:
        """As of `Method`, in bfloat16."""
        tensors = {
            name: p.detach().to("cpu", torch.bfloat16) for name, p in parameters(students).items()
        }
        words = {ABOUT_KEY: json.dumps(about)}
        write_weights(output.path, tensors, self.variant, words)

    def _settings(self, family: str) -> Settings:
        window, down_factor = self.variant.window, self.variant.down_factor
        return Settings(window, down_factor, text_first=family == "flux")

    @torch.no_grad()
    def _begin(self, target: Target, modules: Mapping[str, nn.Module], start: str) -> None:
        """Put an adapter's weights in place of the teacher's."""
        variant = self.variant
        path, _ = find_weights(target.denoiser, start, variant.window, variant.down_factor)
        if path is None:  # the model's own
            return
        learned = parameters(Students(modules, nn.ModuleList()))
        shapes = {name: tuple(p.shape) for name, p in learned.items()}
        for name, tensor in read_weights(path, shapes).items():
            learned[name].copy_(tensor)


def parameters(students: Students) -> dict[str, nn.Parameter]:
    """What learns, under the names that CLEAR's files have for it."""
    return {
        f"{name}.{path}": parameter
        for name, module in students.modules.items()
        for path, parameter in module.named_parameters()
    }
