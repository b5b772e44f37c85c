"""An attention of FLUX or SD3 with CLEAR's operator and projections of its own that learn.

All else (norms, projections of the text, the block around it) is the teacher's own, there once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hirescli.attention.clear_mount import projections_of
from hirescli.attention.clear_processor import ClearProcessor, Settings, TokenGrid


class Projection(nn.Module):
    """A linear layer whose weights are float32, and that computes in the dtype of its input.

    Args:
        like: Whose weights it begins with, copied.
    """

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(like.weight.detach().to(torch.float32, copy=True))
        self.bias: nn.Parameter | None = None
        if like.bias is not None:
            self.bias = nn.Parameter(like.bias.detach().to(torch.float32, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LocalAttention(nn.Module):
    """CLEAR's attention in place of one attention module, for images of one size.

    Its parameters are those that CLEAR's files hold of this attention, under the same names:
    the projections of queries, keys, values and outputs, and `processor.spatial_weight`.

    Args:
        attn: The teacher's, whose other weights it shares.
        settings: Of CLEAR.
        grid: Rows and columns of the image's tokens.
    """

    def __init__(self, attn: Any, settings: Settings, grid: TokenGrid) -> None:
        super().__init__()
        self.grid = grid
        self.processor = ClearProcessor(settings, dtype=torch.float32)
        for path in projections_of(attn):
            name, _, place = path.partition(".")
            made = Projection(attn.get_submodule(path))
            after = [nn.Identity()] * bool(place)  # in place of dropout, of which models have none
            setattr(self, name, nn.ModuleList([made, *after]) if place else made)
        self.__dict__["_shared"] = attn  # not among the modules of this one

    def __getattr__(self, name: str) -> Any:
        """The teacher's for what is not its own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_shared"], name)

    def forward(self, hidden_states: Tensor, **given: Any) -> Any:
        """As the attention that it stands for."""
        return self.processor(self, hidden_states, clear_grid=self.grid, **given)
