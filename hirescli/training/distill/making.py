"""Samples for the cache: from pictures with captions, or drawn by the teacher from prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hirescli.cascade.pipelines import pipeline_of
from hirescli.cascade.stages import GUIDANCE_RESCALE
from hirescli.errors import RequestError
from hirescli.output.reading import middle_square, read_rgb
from hirescli.training.distill.batches import seed_of
from hirescli.training.distill.cache import Cache, check_finite
from hirescli.training.distill.calls import packed, unpacked
from hirescli.training.distill.captions import Captioned
from hirescli.training.distill.targets import Target

TOGETHER = 4  # pictures that are encoded at a time

Told = Callable[[int], None]


def encode_pictures(
    target: Target,
    pictures: Sequence[Captioned],
    numbers: Sequence[int],
    cache: Cache,
    *,
    side_px: int,
    told: Told,
) -> None:
    """Write latents and text states of these pictures; broken ones are remembered as that.

    Args:
        target: With its encoders.
        pictures: All of the folder.
        numbers: Those to be made.
        cache: Where they go.
        side_px: Of the middle square, after the shorter side is resized to it.
        told: Is given how many are done.
    """
    done = 0
    for begin in range(0, len(numbers), TOGETHER):
        chunk: list[tuple[int, Tensor]] = []
        for number in numbers[begin : begin + TOGETHER]:
            try:
                chunk.append((number, read_square(pictures[number].path, side_px, cache.folder)))
            except RequestError as error:
                cache.leave_out(number, str(error))
        if chunk:
            _encode(target, pictures, chunk, cache)
        done += len(numbers[begin : begin + TOGETHER])
        told(done)


def _encode(
    target: Target, pictures: Sequence[Captioned], chunk: list[tuple[int, Tensor]], cache: Cache
) -> None:
    latents = target.latents(torch.stack([picture for _, picture in chunk]))
    check_finite(latents, str(pictures[chunk[0][0]].path))
    text, pooled = target.states([pictures[number].caption for number, _ in chunk])
    for i, (number, _) in enumerate(chunk):
        cache.write(number, latents[i], text[i], None if pooled is None else pooled[i])


def read_square(path: Path, side_px: int, spills: Path) -> Tensor:
    """The middle square of a picture, upright, in sRGB: (3, side, side) in [-1, 1].

    Args:
        path: A picture whose shorter side has `side_px` or more.
        side_px: What it is resized to.
        spills: A folder for the decoded picture, for as long as it is read.

    Raises:
        RequestError: If it is damaged.
    """
    square = middle_square(read_rgb(path, spills=spills), side_px)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1


def draw_samples(
    target: Target,
    prompts: Sequence[str],
    numbers: Sequence[int],
    cache: Cache,
    *,
    side_px: int,
    seed: int,
    steps: int | None,
    told: Told,
) -> None:
    """Let the teacher draw the pictures of these prompts, and write their latents.

    Sampler and guidance are those that the model's card uses for a base picture, and steps too if
    they are None. Each prompt has a seed of its own: what is drawn does not depend on the order.
    """
    card = target.model.card
    pipeline = pipeline_of(
        target.model, scheduler=card.scheduler, from_picture=False, place=target.denoiser.device
    )
    side = side_px // target.factor
    avoided = _avoided(target)
    for done, number in enumerate(numbers, 1):
        generator = torch.Generator().manual_seed(seed_of(seed, number))
        noise = torch.randn(1, card.latent_channels, side, side, generator=generator)
        text, pooled = target.states([prompts[number]])
        states = {"prompt_embeds": text, **avoided}
        if pooled is not None:
            states["pooled_prompt_embeds"] = pooled
        latents = _drawn(target, pipeline, states, noise, generator, steps)
        check_finite(latents, f'prompt "{prompts[number][:60]}"')
        cache.write(number, latents[0], text[0], None if pooled is None else pooled[0])
        told(done)


def _avoided(target: Target) -> dict[str, Tensor]:
    """What guidance leads away from; FLUX has no guidance by a second call."""
    if target.family == "flux":
        return {}
    none, pooled = target.no_states()
    states = {"negative_prompt_embeds": none}
    return states if pooled is None else states | {"negative_pooled_prompt_embeds": pooled}


@torch.no_grad()
def _drawn(
    target: Target,
    pipeline: Any,
    states: dict[str, Tensor],
    noise: Tensor,
    generator: torch.Generator,
    steps: int | None,
) -> Tensor:
    """Latents (1, C, h, w) that the teacher draws from noise of that shape."""
    card, device, dtype = target.model.card, target.denoiser.device, target.denoiser.dtype
    more = {"guidance_rescale": GUIDANCE_RESCALE} if target.family == "builtin" else {}
    flux = target.family == "flux"
    height, width = noise.shape[2:]
    drawn: Tensor = pipeline(
        **{key: value.to(device, dtype) for key, value in states.items()},
        **more,
        latents=(packed(noise) if flux else noise).to(device, dtype),
        height=height * target.factor,
        width=width * target.factor,
        num_inference_steps=steps or card.steps,
        guidance_scale=card.guidance_scale,
        generator=generator,
        output_type="latent",
    ).images
    return (unpacked(drawn, height, width) if flux else drawn).float().cpu()
