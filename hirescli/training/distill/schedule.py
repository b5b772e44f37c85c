"""The noise of a model, and what its denoiser is asked to predict.

Of diffusion x_t = alpha_t x_0 + sigma_t noise, with alpha_t^2 + sigma_t^2 = 1; of flow matching
x_t = (1 - sigma_t) x_0 + sigma_t noise. Shapes: (B, C, h, w) latents.

References:
    Flow Matching for Generative Modeling, https://arxiv.org/abs/2210.02747
    Scaling Rectified Flow Transformers (SD3), https://arxiv.org/abs/2403.03206
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from hirescli.errors import RequestError
from hirescli.models.quiet import quiet_libraries

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Schedule(Protocol):
    """How noise is added at a timestep, and what leads back. Timesteps are (B,), int64."""

    @property
    def timesteps(self) -> int:
        """T: timesteps are 0, hardly any noise, to T - 1."""

    def told(self, timesteps: Tensor) -> Tensor:
        """What the denoiser is given for these timesteps, (B,)."""

    def noised(self, begun: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of what noise is added to."""

    def wanted(self, x_t: Tensor, x_0: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction that leads from x_t to x_0."""


@dataclass(frozen=True)
class NoiseSchedule:
    """What a scheduler's config says about training.

    Attributes:
        alphas_bar: alpha_t^2 by timestep, (T,).
        prediction: "epsilon", "v_prediction" or "sample".
    """

    alphas_bar: Tensor
    prediction: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """From the config of any of diffusers' schedulers.

        Raises:
            RequestError: If its prediction type is none of `PREDICTIONS`.
        """
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        prediction = config.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise RequestError(
                f'the scheduler predicts "{prediction}"; distillation knows '
                f"{', '.join(PREDICTIONS)}: use a model of one of these"
            )
        known = {k: v for k, v in config.items() if k.startswith(("beta", "trained_", "rescale"))}
        steps = config.get("num_train_timesteps", 1000)
        with quiet_libraries():
            scheduler: Any = DDPMScheduler(num_train_timesteps=steps, **known)
        return cls(scheduler.alphas_cumprod, prediction)

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.alphas_bar)

    def told(self, timesteps: Tensor) -> Tensor:
        """The timesteps themselves."""
        return timesteps

    def noised(self, begun: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of what noise is added to."""
        alpha_t, sigma_t = self._at(timesteps, begun)
        return alpha_t * begun + sigma_t * noise

    def wanted(self, x_t: Tensor, x_0: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction that leads from x_t to x_0.

        For x_t made from x_0 this is the noise, or v = alpha_t noise - sigma_t x_0, or x_0. It
        is also right where x_t was made from a degraded picture.
        """
        if self.prediction == "sample":
            return x_0
        alpha_t, sigma_t = self._at(timesteps, x_0)
        if self.prediction == "epsilon":
            return (x_t - alpha_t * x_0) / sigma_t
        return (alpha_t * x_t - x_0) / sigma_t

    def _at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alphas_bar.to(like.device)[timesteps].view(-1, 1, 1, 1).to(like.dtype)
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


@dataclass(frozen=True)
class FlowSchedule:
    """What a flow-matching scheduler's config says about training.

    Attributes:
        sigmas: sigma_t by timestep, ascending, (T,): even, or with the scheduler's own shift.
    """

    sigmas: Tensor

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> FlowSchedule:
        """From the config of a flow-matching scheduler.

        A shift that depends on the size of a picture is one of sampling and not in this table.
        """
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
            FlowMatchEulerDiscreteScheduler,
        )

        names = ("num_train_timesteps", "shift", "use_dynamic_shifting")
        with quiet_libraries():
            scheduler: Any = FlowMatchEulerDiscreteScheduler(
                **{name: config[name] for name in names if name in config}
            )
        return cls(scheduler.sigmas.flip(0))

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.sigmas)

    def told(self, timesteps: Tensor) -> Tensor:
        """T sigma_t, as transformers of flow models read it."""
        return self.sigmas.to(timesteps.device)[timesteps] * self.timesteps

    def noised(self, begun: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of what noise is added to: a point on the line from there to the noise."""
        sigma_t = self._at(timesteps, begun)
        return (1 - sigma_t) * begun + sigma_t * noise

    def wanted(self, x_t: Tensor, x_0: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity from x_0 to x_t: for x_t made from x_0 it is noise - x_0."""
        return (x_t - x_0) / self._at(timesteps, x_0)

    def _at(self, timesteps: Tensor, like: Tensor) -> Tensor:
        return self.sigmas.to(like.device)[timesteps].view(-1, 1, 1, 1).to(like.dtype)


def drawn_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise from a CPU generator: the same on every device."""
    return torch.randn(shape, generator=generator)
