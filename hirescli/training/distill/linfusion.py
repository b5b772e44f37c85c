"""LinFusion: linear attention in place of every self-attention of a UNet."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hirescli.attention.linfusion import LinFusionAdapter, check_fit, self_attentions
from hirescli.attention.loading import load_adapter
from hirescli.errors import RequestError
from hirescli.models.quiet import quiet_libraries
from hirescli.training.distill.methods import Students
from hirescli.training.distill.outputs import AdapterFolder, Output
from hirescli.training.distill.targets import Found, Target

# Of the published adapters; of the built-in model a quarter keeps it small.
MID_DIM_SCALES = {"builtin": 4, "sd": 1, "sdxl": 16}


@dataclass(frozen=True)
class LinFusion:
    """The method with its settings.

    Attributes:
        mid_dim_scale: The learned shift is as wide as the tokens, divided by this; None: as in
            the adapter that it begins from.
    """

    mid_dim_scale: int | None
    name: str = "linfusion"

    def settings(self) -> dict[str, Any]:
        """As of `Method`."""
        return {"mid_dim_scale": self.mid_dim_scale}

    def check(self, found: Found, side_px: int) -> None:
        """As of `Method`; any side will do."""

    def students(self, target: Target, side_px: int, start: str | None) -> Students:
        """As of `Method`."""
        adapter = new_adapter(target.denoiser, mid_dim_scale=self.mid_dim_scale, start=start)
        return Students(named(adapter), adapter)

    def publish(self, students: Students, output: Output, about: Mapping[str, Any]) -> None:
        """As of `Method`, in half precision."""
        assert isinstance(output, AdapterFolder)
        made: Any = copy.deepcopy(students.whole)
        with quiet_libraries():  # which warn of modules to be kept in float32, of which none are
            made.to(device="cpu", dtype=torch.float16)
        for module in made.modules():
            if hasattr(module, "replaced"):
                module.replaced = ()
        aside = output.path.with_name(output.path.name + ".run") / "before"
        with output.filled(aside, about) as folder:
            made.save_pretrained(folder, safe_serialization=True)


def new_adapter(
    unet: Any, *, mid_dim_scale: int | None, start: str | None = None
) -> LinFusionAdapter:
    """The adapter that learns, float32: the teacher's projections, or another adapter's weights.

    Raises:
        RequestError: If the UNet has no self-attention, or `start` is none, does not fit, or has
            shifts of another width than asked for.
    """
    if not any(self_attentions(unet)):
        raise RequestError(f"{type(unet).__name__} has no self-attention to replace")
    if start is None:
        assert mid_dim_scale is not None, "no other adapter says how wide its shift is"
        adapter = LinFusionAdapter.for_unet(unet, mid_dim_scale=mid_dim_scale)
    else:
        adapter = load_adapter(start)
        check_fit(unet, adapter)
        _check_widths(adapter, mid_dim_scale, start)
    made: LinFusionAdapter = adapter.float().train().requires_grad_(True)
    return made


def _check_widths(adapter: LinFusionAdapter, mid_dim_scale: int | None, start: str) -> None:
    for entry in adapter.entries:
        wanted = mid_dim_scale and entry.dim_n // mid_dim_scale
        if wanted and entry.projection_mid_dim != wanted:
            raise RequestError(
                f"--start {start} has a shift of {entry.projection_mid_dim} channels at "
                f"{entry.module_name}, and --mid-dim-scale {mid_dim_scale} makes {wanted} of "
                f"{entry.dim_n}; leave it out, or begin without --start"
            )


def named(adapter: LinFusionAdapter) -> dict[str, nn.Module]:
    """The adapter's modules by the names of the attentions that they stand for."""
    names = [entry.module_name for entry in adapter.entries]
    return dict(zip(names, adapter.children(), strict=True))
