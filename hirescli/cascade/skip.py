"""The `skip` method: two predictions mixed at every call, and latents drawn back to their input.

Shapes: samples, predictions and latents (B, C, h, w); t counts down from T training timesteps.
With the share of noise c(t) = (1 + cos(pi (T - t) / T)) / 2, which is 1 at t = T and 0 at t = 0,
a stage that enlarges its picture by `ratio` over the native size does at each t

- the *residual*: x <- (1 - c^s1) x + c^s1 (encoded input with noise at t);
- the *first prediction*: of x, by the denoiser as it is;
- the *second prediction*: of x blurred and set back to its moments, by the denoiser with every
  convolution dilated by `ratio`, so that it sees at this size what it saw at the native one;
- one step with (1 - c^s2) first + c^s2 second.

The published code takes a step with each prediction and mixes the results. Where a step is
affine in the prediction (DDIM, Euler, DPM-Solver++ given its history) that is the same; with a
scheduler that clips or thresholds, it is not. Blurring and setting back commute with scaling x,
so what a scheduler makes of x for the model (Euler) needs no care. Guidance is linear and
commutes with mixing too, but for its rescaling.

Everything here works alike on plain tensors and while the band engine records.

References:
    LinFusion: 1 GPU, 1 Minute, 16K Image, https://arxiv.org/abs/2409.02097
    DemoFusion (skip residual), https://arxiv.org/abs/2311.16973
    ScaleCrafter (dilated denoiser), https://arxiv.org/abs/2310.07702
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from hirescli.cascade.methods import anchor_colours
from hirescli.errors import RequestError


@dataclass(frozen=True)
class SkipSettings:
    """The method's numbers; the defaults are the published ones.

    Attributes:
        residual_power: s1, of the pull to the noised input.
        branch_power: s2, of the second prediction's share.
        blur_power: s3, of how the blur fades.
        sigma: Of the blur at t = T, in latent pixels.
        train_steps: T, the scheduler's `num_train_timesteps`.
    """

    residual_power: float = 3.0
    branch_power: float = 1.0
    blur_power: float = 1.0
    sigma: float = 0.8
    train_steps: int = 1000

    def noise_share(self, timestep: Any) -> float:
        """c(t), in [0, 1]; of a batch's timesteps, which are equal, the first counts."""
        t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        share = 0.5 * (1 + math.cos(math.pi * (self.train_steps - t) / self.train_steps))
        return min(1.0, max(0.0, share))

    def blur_sigma(self, timestep: Any) -> float:
        """Deviation of the blur at t, in latent pixels; never zero."""
        fading = math.pow(self.noise_share(timestep), self.blur_power)
        return self.sigma * (0.99 * fading + 0.01)


class SkipDenoiser:
    """Stands in for a denoiser's forward and gives the mixed prediction.

    What `unet.forward` is when this is made computes both predictions, one after the other. With
    a `StreamedCall` there, each runs in bands by itself and what lies between them is recorded.

    Args:
        unet: A diffusers `UNet2DConditionModel`; a ControlNet's residuals are given to both
            predictions.
        ratio: Of the dilation, at least 1; at 1 the second prediction is left out.
        settings: The method's numbers.
    """

    def __init__(
        self, unet: nn.Module, *, ratio: int, settings: SkipSettings | None = None
    ) -> None:
        assert ratio >= 1, f"ratio {ratio}"
        self._unet = unet
        self._predict: Callable[..., Any] = unet.forward
        self._ratio = ratio
        self._settings = settings or SkipSettings()

    def __call__(
        self, sample: Tensor, timestep: Any, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        """As the denoiser's own forward.

        Raises:
            RequestError: If one of its convolutions cannot be dilated.
        """
        first = self._prediction(sample, timestep, args, kwargs)
        mixed = first
        if self._ratio > 1:
            sigma = self._settings.blur_sigma(timestep)
            blurred = blurred_alike(sample, radius=self._ratio - 1, sigma=sigma)
            with dilated(self._unet, self._ratio):
                second = self._prediction(blurred, timestep, args, kwargs)
            share = math.pow(self._settings.noise_share(timestep), self._settings.branch_power)
            mixed = torch.lerp(first, second, share)
        return UNet2DConditionOutput(sample=mixed) if return_dict else (mixed,)

    def _prediction(self, sample: Tensor, timestep: Any, args: Any, kwargs: Any) -> Tensor:
        # The denoiser takes residuals of adapters out of the lists it is given.
        own = {key: list(v) if isinstance(v, list) else v for key, v in kwargs.items()}
        (prediction,) = self._predict(sample, timestep, *args, return_dict=False, **own)
        return prediction  # type: ignore[no-any-return]


@contextmanager
def skipping(
    unet: nn.Module, *, ratio: int, settings: SkipSettings | None = None
) -> Iterator[None]:
    """Let a denoiser give mixed predictions while the context lasts.

    Args:
        unet: As of `SkipDenoiser`; inside `replaced_forward(unet, StreamedCall(...))` both
            predictions run in bands.
        ratio: Of the dilation, at least 1.
        settings: The method's numbers.
    """
    before = unet.__dict__.get("forward")
    unet.forward = SkipDenoiser(unet, ratio=ratio, settings=settings)
    try:
        yield
    finally:
        if before is None:
            del unet.forward
        else:
            unet.forward = before


@contextmanager
def dilated(module: nn.Module, ratio: int) -> Iterator[None]:
    """Multiply dilation and padding of every 2-D convolution, strided ones too.

    Results keep their sizes; what a convolution reads lies `ratio` times as far apart.

    Args:
        module: Whose convolutions are changed; they are as before afterwards.
        ratio: At least 1.

    Raises:
        RequestError: If a convolution's padding does not keep sizes, or is not of zeros.
    """
    convolutions = {
        name: each for name, each in module.named_modules() if isinstance(each, nn.Conv2d)
    }
    for name, each in convolutions.items():
        _check_dilatable(name, each)
    before = [(each, each.padding, each.dilation) for each in convolutions.values()]
    try:
        for each, padding, dilation in before:
            each.padding = tuple(ratio * int(p) for p in padding)
            each.dilation = tuple(ratio * d for d in dilation)
        yield
    finally:
        for each, padding, dilation in before:
            each.padding, each.dilation = padding, dilation


def _check_dilatable(name: str, conv: nn.Conv2d) -> None:
    kept = tuple(d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if isinstance(conv.padding, str) or tuple(2 * p for p in conv.padding) != kept:
        why = f"is padded by {conv.padding} for a kernel of {conv.kernel_size}"
    elif conv.padding_mode != "zeros" and any(kept):
        why = f'is padded in mode "{conv.padding_mode}"'
    else:
        return
    raise RequestError(
        f"convolution {name} {why} and cannot be dilated; use --method sdedit with this model"
    )


def blurred_alike(sample: Tensor, *, radius: int, sigma: float) -> Tensor:
    """A Gaussian blur of each channel, set back to the channel's mean and deviation.

    At the edges the weights that fall outside are left out and the others sum to one. The
    published code's padding is not known; with zeros the edges would be pulled to grey.

    Args:
        sample: (B, C, h, w); blurred in float32.
        radius: Of the kernel: 2 * radius + 1 weights a side.
        sigma: Deviation of the kernel in pixels, above 0.

    Returns:
        The same shape and dtype.
    """
    channels, height, width = sample.shape[1:]
    reach = torch.arange(-radius, radius + 1, dtype=torch.float64)
    # float64: a small sigma squares to what float32 still has, a smaller one would not.
    taps = torch.exp(-0.5 * (reach / sigma) ** 2)
    taps = (taps / taps.sum()).to(sample.device, torch.float32)
    down = taps.view(1, 1, -1, 1).repeat(channels, 1, 1, 1)
    across = taps.view(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    rows = F.conv2d(sample.float(), down, padding=(radius, 0), groups=channels)
    blurred = F.conv2d(rows, across, padding=(0, radius), groups=channels)
    blurred = blurred / _weight_inside(taps, height).view(1, 1, height, 1)
    blurred = blurred / _weight_inside(taps, width).view(1, 1, 1, width)
    return anchor_colours(blurred, sample.float(), deviation=True).to(sample.dtype)


def _weight_inside(taps: Tensor, size: int) -> Tensor:
    """For each place of an axis the sum of the weights that fall inside: (size,)."""
    ones = taps.new_ones(1, 1, size)
    return F.conv1d(ones, taps.view(1, 1, -1), padding=taps.shape[0] // 2).flatten()


@dataclass(frozen=True)
class SkipResidual:
    """Draws latents back to the noised input of their stage, between two steps.

    The residual is due before each prediction. A stage begins as its encoded input with noise
    at the first timestep, where the residual changes nothing; so it is applied at the end of
    step i for the timestep of step i + 1, and not after the last.

    Attributes:
        scheduler: The pipeline's, whose timesteps are set.
        encoded: (1, C, h, w), latents that the stage began from, without noise.
        noise: The same shape: the very noise that they were given at the start.
        settings: The method's numbers.
    """

    scheduler: Any
    encoded: Tensor
    noise: Tensor
    settings: SkipSettings

    def __post_init__(self) -> None:
        order = getattr(self.scheduler, "order", 1)
        if order != 1:
            raise RequestError(
                f"scheduler {type(self.scheduler).__name__} asks the denoiser {order} times a "
                "step, between which nothing can be mixed in; use one that asks once, such as "
                "ddim or euler, or --method sdedit"
            )

    def after_step(self, latents: Tensor, *, step: int, steps: int) -> Tensor:
        """The latents that the next step begins from.

        Args:
            latents: (1, C, h, w), what step `step` has made.
            step: Its index, from 0, as `callback_on_step_end` is told.
            steps: That this stage runs: the pipeline's `num_timesteps`.
        """
        if step + 1 >= steps:
            return latents
        # A stage runs the last of its scheduler's timesteps.
        timesteps = self.scheduler.timesteps
        place = len(timesteps) - steps + step + 1
        upcoming = timesteps[place : place + 1]
        dtype = latents.dtype
        noised = self.scheduler.add_noise(self.encoded.to(dtype), self.noise.to(dtype), upcoming)
        share = math.pow(self.settings.noise_share(upcoming), self.settings.residual_power)
        return torch.lerp(latents, noised, share)
