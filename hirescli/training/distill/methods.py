"""What the methods of distillation have in common, as `distilling` sees them.

A method says which modules learn, and writes them down; steps, samples, states and processes are
the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from hirescli.training.distill.outputs import Output
from hirescli.training.distill.targets import Found, Target


@dataclass(frozen=True)
class Students:
    """What learns.

    Attributes:
        modules: By the names of the attentions that they stand for, float32.
        whole: All of them as one module, whose state is what a run saves.
    """

    modules: Mapping[str, nn.Module]
    whole: nn.Module


class Method(Protocol):
    """One way to linearise attention."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def settings(self) -> dict[str, Any]:
        """Its own choices, which tell a run from others."""

    def check(self, found: Found, side_px: int) -> None:
        """Check what can be checked before a model is loaded.

        Raises:
            RequestError: If pictures of this side cannot be learned on.
        """

    def students(self, target: Target, side_px: int, start: str | None) -> Students:
        """What learns, fresh: with the teacher's projections, or another adapter's weights.

        Raises:
            RequestError: If there is nothing to replace, or `start` is none or does not fit.
        """

    def publish(self, students: Students, output: Output, about: Mapping[str, Any]) -> None:
        """Write the adapter in the published format, and how it was made."""
