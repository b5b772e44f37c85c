"""The `skip` method against its own formulas, written out plainly, whole and in bands."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

import hirescli
from hirescli.bands.call import StreamedCall, replaced_forward
from hirescli.bands.engine import Engine, banded_tensor
from hirescli.cascade.skip import (
    SkipResidual,
    SkipSettings,
    blurred_alike,
    dilated,
    skipping,
)
from hirescli.errors import RequestError
from hirescli.planning.passes import Store

sys.path.append(str(Path(__file__).parent.parent / "bands"))
import models
from agreement import assert_exact

FAMILIES = {"sd15": models.SD15, "sdxl": models.SDXL, "linfusion": models.LINFUSION}
SETTINGS = SkipSettings()


def store() -> tuple[Store, ...]:
    return (Store("host", 10**12),)


# The plain way


def share(t: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * (1000 - t) / 1000))


def spread(module: nn.Module, ratio: int) -> nn.Module:
    """A copy with its kernels spread out by zeros: what dilation means."""
    made = copy.deepcopy(module)
    for conv in made.modules():
        if isinstance(conv, nn.Conv2d):
            height, width = conv.kernel_size
            size = (ratio * (height - 1) + 1, ratio * (width - 1) + 1)
            kernel = conv.weight.new_zeros(*conv.weight.shape[:2], *size)
            kernel[:, :, ::ratio, ::ratio] = conv.weight
            conv.weight = nn.Parameter(kernel, requires_grad=False)
            conv.padding = (size[0] // 2, size[1] // 2)
    return made


def blurred(sample: Tensor, radius: int, sigma: float) -> Tensor:
    """By scipy, in float64."""
    values, ones = sample.double().numpy(), np.ones(sample.shape)
    for axis in (2, 3):
        values = gaussian_filter1d(values, sigma, axis, mode="constant", radius=radius)
        ones = gaussian_filter1d(ones, sigma, axis, mode="constant", radius=radius)
    made, x = torch.from_numpy(values / ones), sample.double()
    made = (made - made.mean((2, 3), True)) / made.std((2, 3), keepdim=True)
    return made * x.std((2, 3), keepdim=True) + x.mean((2, 3), True)


@torch.no_grad()
def plainly(family: Any, inputs: models.Inputs, ratio: int) -> Tensor:
    """The mixed prediction in float64."""
    module = family.module(torch.float64)
    # Lists anew for each call: adapters' residuals are taken out of them.
    first_inputs, second_inputs = (models.in_dtype(inputs, torch.float64) for _ in range(2))
    t = inputs["timestep"]
    sigma = 0.8 * (0.99 * share(t) + 0.01)
    second_inputs["sample"] = blurred(inputs["sample"], ratio - 1, sigma)
    (first,) = family.call(module, first_inputs)
    (second,) = family.call(spread(module, ratio), second_inputs)
    mixed: Tensor = (1 - share(t)) * first + share(t) * second
    return mixed


def at(family: Any, size: models.Size, batch: int, t: int) -> models.Inputs:
    return {**family.inputs(size, batch, 1), "timestep": t}


# Numbers


def test_the_share_of_noise_runs_from_one_to_zero() -> None:
    assert [SETTINGS.noise_share(t) for t in (1000, 500, 0)] == pytest.approx([1, 0.5, 0])
    assert SETTINGS.noise_share(torch.tensor([250, 250])) == pytest.approx(0.5 - 0.25 * 2**0.5)
    shares = [SETTINGS.noise_share(t) for t in range(0, 1001, 50)]
    assert shares == sorted(shares)
    assert SETTINGS.blur_sigma(1000) == pytest.approx(0.8)
    assert SETTINGS.blur_sigma(0) == pytest.approx(0.008)
    halved = SkipSettings(train_steps=500, sigma=2, blur_power=2)
    assert halved.blur_sigma(250) == pytest.approx(2 * (0.99 * 0.25 + 0.01))


# Dilation


def test_every_convolution_is_dilated_and_set_back() -> None:
    module = models.sd15_unet()
    convolutions = [each for each in module.modules() if isinstance(each, nn.Conv2d)]
    before = [(each.padding, each.dilation) for each in convolutions]
    with dilated(module, 3):
        assert {(each.kernel_size, each.dilation) for each in convolutions} == {
            ((3, 3), (3, 3)),
            ((1, 1), (3, 3)),
        }
        assert {each.stride for each in convolutions} == {(1, 1), (2, 2)}
        for each in convolutions:
            x = models.draw((1, each.in_channels, 17, 12), 3)
            (made, wanted) = (each(x), spread(nn.Sequential(each), 3)[0])
            wanted.dilation = (1, 1)
            torch.testing.assert_close(made, wanted(x), rtol=1e-4, atol=1e-5)
    assert [(each.padding, each.dilation) for each in convolutions] == before
    with pytest.raises(KeyError), dilated(module, 2):
        raise KeyError
    assert [(each.padding, each.dilation) for each in convolutions] == before


@pytest.mark.parametrize(
    ("options", "word"),
    [({"padding": 0}, "padded by"), ({"padding": 1, "padding_mode": "circular"}, "circular")],
)
def test_convolutions_that_cannot_be_dilated_are_refused(
    options: dict[str, Any], word: str
) -> None:
    module = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, **options))
    with pytest.raises(RequestError, match=word) as caught, dilated(module, 2):
        pass
    assert "convolution 1 " in str(caught.value)
    assert module[0].dilation == (1, 1)


# Blur


@pytest.mark.parametrize(("radius", "sigma"), [(1, 0.8), (3, 0.4), (15, 0.8), (1, 0.008)])
def test_blur_is_scipys_with_the_moments_of_the_sample(radius: int, sigma: float) -> None:
    sample = models.picture(2, 4, (19, 11), 5)
    made = blurred_alike(sample, radius=radius, sigma=sigma)
    torch.testing.assert_close(made.double(), blurred(sample, radius, sigma), rtol=0, atol=2e-5)
    torch.testing.assert_close(made.mean((2, 3)), sample.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.std((2, 3)), sample.std((2, 3)), rtol=1e-5, atol=0)


def test_blur_does_not_pull_edges_to_zero() -> None:
    sample = torch.full((1, 2, 9, 9), 5.0)
    sample[:, :, 4, 4] = 5.1
    assert float(blurred_alike(sample, radius=3, sigma=0.8).min()) > 4.9


def test_a_flat_channel_stays_flat() -> None:
    sample = torch.full((1, 2, 9, 9), 3.0)
    torch.testing.assert_close(blurred_alike(sample, radius=1, sigma=0.8), sample)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_blur_in_bands_is_the_whole_blur(rows: int) -> None:
    sample = models.picture(1, 4, (23, 9), 6)
    engine = Engine(stores=store(), rows=rows)
    made = engine.whole([blurred_alike(banded_tensor(sample), radius=3, sigma=0.7)])
    assert_exact(made, [blurred(sample, 3, 0.7)])


# Predictions


@pytest.mark.parametrize(("ratio", "t"), [(2, 999), (2, 60), (4, 420)])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_mixed_prediction_is_that_of_the_formulas(name: str, ratio: int, t: int) -> None:
    family = FAMILIES[name]
    inputs = models.in_dtype(at(family, (33, 21), 2, t), torch.float32)
    module = family.module()
    with torch.no_grad(), skipping(module, ratio=ratio):
        made = family.call(module, inputs)
    assert_exact(made, [plainly(family, inputs, ratio)])


def test_both_predictions_count() -> None:
    """The tests above would not see a part that changes nothing."""
    family = models.SD15
    inputs = models.in_dtype(at(family, (33, 21), 1, 420), torch.float32)
    (first,) = family.plain(inputs)
    mixed = [plainly(family, inputs, ratio) for ratio in (2, 4)]
    for one, other in ((mixed[0], first), (mixed[1], first), (mixed[0], mixed[1])):
        assert float((one - other).abs().mean() / first.std()) > 0.05


def test_at_native_size_nothing_is_mixed() -> None:
    family = models.SD15
    inputs = models.in_dtype(at(family, (16, 9), 1, 700), torch.float32)
    module = family.module()
    with torch.no_grad(), skipping(module, ratio=1):
        made = family.call(module, inputs)
    assert torch.equal(made[0], family.plain(inputs)[0])
    assert "forward" not in vars(module)


def test_residuals_of_a_controlnet_are_added_to_both() -> None:
    family = models.RESIDUALS
    inputs = models.in_dtype(at(family, (33, 21), 1, 420), torch.float32)
    module = family.module()
    with torch.no_grad(), skipping(module, ratio=2):
        made = family.call(module, inputs)
    assert_exact(made, [plainly(family, inputs, 2)])


def test_residuals_of_an_adapter_are_added_to_both() -> None:
    """The denoiser takes them out of their list."""
    family = models.SD15
    inputs = models.in_dtype(at(family, (33, 21), 1, 420), torch.float32)
    shapes = [(1, 16, 33, 21), (1, 24, 17, 11), (1, 32, 9, 6), (1, 32, 5, 3)]
    residuals = [models.draw(shape, seed) for seed, shape in enumerate(shapes)]
    inputs["down_intrablock_additional_residuals"] = residuals
    module = family.module()
    with torch.no_grad(), skipping(module, ratio=2):
        made = family.call(module, models.in_dtype(inputs, torch.float32))
    assert_exact(made, [plainly(family, inputs, 2)])


IN_BANDS = [
    ("sd15", 2, 2),
    ("sd15", 2, 100),
    ("sd15", 4, 5),
    ("sdxl", 2, 9),
    ("sdxl", 4, 4),
    ("linfusion", 2, 5),
]


@pytest.mark.parametrize(("name", "ratio", "rows"), IN_BANDS)
def test_in_bands_as_in_one(name: str, ratio: int, rows: int) -> None:
    """Streamed: two calls of the engine, with the blur recorded before the second."""
    family = FAMILIES[name]
    inputs = models.in_dtype(at(family, (33, 21), 1, 420), torch.float32)
    module = family.module()
    with torch.no_grad(), hirescli.stream(module, rows=rows), skipping(module, ratio=ratio):
        made = family.call(module, inputs)
    assert_exact(made, [plainly(family, inputs, ratio)])
    assert "forward" not in vars(module)


def test_a_stage_of_banded_tensors() -> None:
    """As a stage runs it: banded tensors in and out, both halves of guidance in a batch."""
    family, ratio = models.SD15, 2
    inputs = models.in_dtype(at(family, (33, 21), 2, 420), torch.float32)
    module, engine = family.module(), Engine(stores=store(), rows=6)
    call = StreamedCall("unet", module, engine, give=lambda made: engine.keep(made, "host"))
    banded = {**inputs, "sample": banded_tensor(inputs["sample"])}
    with torch.no_grad(), replaced_forward(module, call), skipping(module, ratio=ratio):
        for return_dict in (True, False):
            made = module(**banded, return_dict=return_dict)[0]
            assert_exact(engine.whole([made]), [plainly(family, inputs, ratio)])


# Steps


def ddim() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)


def euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(beta_schedule="scaled_linear")


SCHEDULERS: dict[str, Callable[[], Any]] = {"ddim": ddim, "euler": euler}
MULTISTEP = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_step_with_the_mix_is_the_mix_of_two_steps(name: str) -> None:
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(7)
    x, first, second = (models.draw((1, 4, 9, 7), seed) for seed in (1, 2, 3))
    t = scheduler.timesteps[2]

    def step(prediction: Tensor) -> Tensor:
        alone = copy.deepcopy(scheduler)  # a step moves the scheduler on
        made: Tensor = alone.step(prediction, t, x).prev_sample
        return made

    mixed, c = step(torch.lerp(first, second, 0.3)), 0.3
    torch.testing.assert_close(mixed, (1 - c) * step(first) + c * step(second))


def begin(scheduler: Any, steps: int) -> None:
    """As image-to-image pipelines do: only the last steps of a schedule are run."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(len(scheduler.timesteps) - steps)


@torch.no_grad()
def published_stage(
    unet: Any, scheduler: Any, encoded: Tensor, noise: Tensor, text: Tensor, ratio: int, steps: int
) -> Tensor:
    """The loop as published: residual, two predictions, two steps, their mix."""
    wide = spread(unet, ratio)
    timesteps = scheduler.timesteps[-steps:]
    begin(scheduler, steps)
    x = scheduler.add_noise(encoded, noise, timesteps[:1])
    for t in timesteps:
        c = share(float(t))
        x = (1 - c**3) * x + c**3 * scheduler.add_noise(encoded, noise, t[None])
        scaled = scheduler.scale_model_input(x, t)
        soft = blurred(scaled, ratio - 1, 0.8 * (0.99 * c + 0.01)).float()
        predictions = [unet(scaled, t, text).sample, wide(soft, t, text).sample]
        other = copy.deepcopy(scheduler)
        first = scheduler.step(predictions[0], t, x).prev_sample
        second = other.step(predictions[1], t, x).prev_sample
        x = (1 - c) * first + c * second
    return x  # type: ignore[no-any-return]


@torch.no_grad()
def our_stage(
    unet: Any, scheduler: Any, encoded: Tensor, noise: Tensor, text: Tensor, ratio: int, steps: int
) -> Tensor:
    """The loop of an image-to-image pipeline of diffusers, with its callback."""
    residual = SkipResidual(scheduler, encoded, noise, SETTINGS)
    timesteps = scheduler.timesteps[-steps:]
    begin(scheduler, steps)
    x = scheduler.add_noise(encoded, noise, timesteps[:1])
    with skipping(unet, ratio=ratio):
        for i, t in enumerate(timesteps):
            prediction = unet(scheduler.scale_model_input(x, t), t, text).sample
            x = scheduler.step(prediction, t, x).prev_sample
            x = residual.after_step(x, step=i, steps=steps)
    return x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_stage_is_the_published_loop(name: str) -> None:
    encoded, noise = models.picture(1, 4, (18, 13), 8), models.draw((1, 4, 18, 13), 9)
    text = models.draw((1, models.TEXT_TOKENS, models.TEXT_CHANNELS), 10)
    made, wanted = [], []
    for loop, results in ((our_stage, made), (published_stage, wanted)):
        scheduler = SCHEDULERS[name]()
        scheduler.set_timesteps(10)
        results.append(loop(models.SD15.module(), scheduler, encoded, noise, text, 2, 6))
    assert_exact(made, wanted)


def test_the_residual_is_left_out_after_the_last_step() -> None:
    scheduler = ddim()
    scheduler.set_timesteps(5)
    encoded, noise, x = (models.draw((1, 4, 9, 7), seed) for seed in (1, 2, 3))
    residual = SkipResidual(scheduler, encoded, noise, SETTINGS)
    assert residual.after_step(x, step=2, steps=3) is x
    assert not torch.equal(residual.after_step(x, step=0, steps=3), x)


@pytest.mark.parametrize("name", SCHEDULERS | MULTISTEP)
def test_the_residual_in_bands(name: str) -> None:
    encoded, noise, x = (models.draw((1, 4, 23, 7), seed) for seed in (1, 2, 3))
    scheduler = (SCHEDULERS | MULTISTEP)[name]()
    scheduler.set_timesteps(5)
    wanted = SkipResidual(scheduler, encoded, noise, SETTINGS).after_step(x, step=0, steps=4)
    banded = [banded_tensor(each) for each in (encoded, noise, x)]
    made = SkipResidual(scheduler, *banded[:2], SETTINGS).after_step(banded[2], step=0, steps=4)
    assert_exact(Engine(stores=store(), rows=4).whole([made]), [wanted])


def test_schedulers_that_predict_twice_a_step_are_refused() -> None:
    x = torch.zeros(1)
    with pytest.raises(RequestError, match="HeunDiscreteScheduler asks the denoiser 2 times"):
        SkipResidual(HeunDiscreteScheduler(), x, x, SETTINGS)
