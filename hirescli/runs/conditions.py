"""What the bits of an image depend on beside its recipe: runs go on only where it is the same."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hirescli.planning.plan import Plan

_PACKAGES = ("hirescli", "torch", "diffusers", "transformers")


def conditions(plan: Plan) -> dict[str, str]:
    """Versions, processor, device and budgets, each as text under a name that people know."""
    import torch

    made = {name: _version(name) for name in _PACKAGES}
    made["machine"] = platform.machine()
    made["processor features"] = torch.backends.cpu.get_cpu_capability()
    made["device"] = "cpu"
    if plan.recipe.device == "cuda":
        made["device"] = torch.cuda.get_device_name()
    budgets = plan.budgets
    made["memory"] = str(budgets.memory_bytes)
    made["host memory"] = str(budgets.host_bytes)
    return made


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from a folder"
