"""Schedulers by their names in recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

SCHEDULERS: dict[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "flow-euler": FlowMatchEulerDiscreteScheduler,
}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A scheduler with the noise schedule of another one's config.

    Args:
        name: One of `SCHEDULERS`.
        config: Of the scheduler that the model was published with, of any class.
    """
    if name == "flow-euler":
        return SCHEDULERS[name].from_config(config)
    # Latents are not in [-1, 1]: clipping is for models of pixels, and some configs that never
    # said so were written for schedulers that cannot clip.
    return SCHEDULERS[name].from_config({**config, "clip_sample": False})
