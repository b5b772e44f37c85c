"""The scheduler of the built-in model: DDIM, trailing, with exactly the steps asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers.schedulers.scheduling_ddim import DDIMScheduler

if TYPE_CHECKING:
    import torch


class TrailingDDIMScheduler(DDIMScheduler):
    """DDIM without the surplus step that diffusers adds to some trailing schedules.

    Diffusers counts down from 1000 by a float ratio, and at lengths such as 103 rounding lets it
    take one step more: at timestep -1, which reads the last entry of the schedule, pure noise.
    """

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Set the timesteps of a schedule of that length, the noisiest first."""
        super().set_timesteps(num_inference_steps, device)  # type: ignore[arg-type]
        self.timesteps = self.timesteps[:num_inference_steps]
