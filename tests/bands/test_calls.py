"""Ways to call a component that its family's contract does not take."""

from __future__ import annotations

import copy
from typing import Any

import models
import pytest
import torch
from agreement import assert_exact
from models import LATENT_SIZES, Family, Inputs, draw
from torch import Tensor

import hirescli

SIZE = (13, 9)


def unet_family(build: Any = models.sd15_unet, **more: Any) -> Family:
    """A denoiser with further arguments; `more` may be functions of the batch."""

    def inputs(size: models.Size, batch: int, seed: int) -> Inputs:
        return models.unet_inputs(size, batch, seed) | more

    return Family(build, inputs, models.call_unet)


FURTHER = {
    "masked text": unet_family(
        encoder_attention_mask=torch.tensor([[1.0] * 5 + [0.0] * 2, [1.0] * 7])
    ),
    "classes": unet_family(
        lambda: models.sd15_unet(num_class_embeds=5), class_labels=torch.tensor([3, 1])
    ),
    "time condition": unet_family(
        lambda: models.sd15_unet(time_cond_proj_dim=6), timestep_cond=draw((2, 6), 1)
    ),
    "scale and shift": unet_family(
        lambda: models.sd15_unet(resnet_time_scale_shift="scale_shift")
    ),
    "centred": unet_family(lambda: models.sd15_unet(center_input_sample=True)),
    "lora scale": Family(
        models.lora_unet,
        lambda size, batch, seed: {
            **models.unet_inputs(size, batch, seed),
            "cross_attention_kwargs": {"scale": 0.3},
        },
        models.call_unet,
    ),
    "guessing": Family(
        models.controlnet,
        lambda size, batch, seed: {
            **models.controlnet_inputs(size, batch, seed),
            "guess_mode": True,
        },
        models.call_controlnet,
    ),
    "no middle attention": Family(
        lambda: models.autoencoder(mid_block_add_attention=False),
        models.latent_inputs(4),
        models.call_decode,
    ),
}


@pytest.mark.parametrize("name", FURTHER)
def test_further_arguments(name: str) -> None:
    family = FURTHER[name]
    module, inputs = family.module(), family.inputs(SIZE, 2, 1)
    with torch.no_grad(), hirescli.stream(module, rows=4):
        made = family.call(module, inputs)
    assert_exact(made, family.reference(inputs))


@torch.no_grad()
@pytest.mark.parametrize("form", [True, False])
def test_answers_have_the_form_of_plain_ones(form: bool) -> None:
    unet, inputs = models.SD15.module(), models.unet_inputs(SIZE, 1, 1)
    plain = unet(**inputs, return_dict=form)
    with hirescli.stream(unet, rows=4):
        made = unet(**inputs, return_dict=form)
    assert type(made) is type(plain)
    assert len(made) == len(plain)
    assert_exact([made[0]], [plain[0]])


@torch.no_grad()
def test_positional_arguments() -> None:
    unet, inputs = models.SD15.module(), models.unet_inputs(SIZE, 1, 1)
    with hirescli.stream(unet, rows=4):
        made = unet(*inputs.values()).sample
    assert_exact([made], models.SD15.reference(inputs))


@torch.no_grad()
@pytest.mark.parametrize("family", [models.KL_DECODE, models.FLUX_DECODE, models.TINY_DECODE])
def test_decoder_alone(family: Family) -> None:
    vae: Any = family.module()
    latents = next(iter(family.inputs(SIZE, 2, 1).values()))
    plain = vae.decoder(latents)
    with hirescli.stream(vae, rows=4):
        made = vae.decoder(latents)
    assert_exact([made], [plain])


@torch.no_grad()
@pytest.mark.parametrize("family", [models.KL_ENCODE, models.FLUX_ENCODE, models.TINY_ENCODE])
def test_encoder_alone(family: Family) -> None:
    vae: Any = family.module()
    pixels = family.inputs((67, 45), 2, 1)["x"]
    plain = vae.encoder(pixels)
    with hirescli.stream(vae, rows=16):
        made = vae.encoder(pixels)
    assert_exact([made], [plain])


@torch.no_grad()
def test_part_of_an_autoencoder_streamed_by_itself() -> None:
    vae: Any = models.KL_DECODE.module()
    latents = models.latent_inputs(4)(SIZE, 1, 1)["z"]
    plain = vae.decoder(latents)
    with hirescli.stream(vae.decoder, rows=4):
        assert_exact([vae.decoder(latents)], [plain])


@torch.no_grad()
def test_latents_are_drawn_as_plainly() -> None:
    vae: Any = models.KL_ENCODE.module()
    pixels = models.pixel_inputs((72, 40), 2, 1)["x"]

    def sample() -> Tensor:
        drawn: Tensor = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(1))
        return drawn

    plain = sample()
    with hirescli.stream(vae, rows=16):
        made = sample()
    assert_exact([made], [plain])


@torch.no_grad()
@pytest.mark.parametrize("sample", [False, True])
def test_there_and_back(sample: bool) -> None:
    vae: Any = models.KL_ENCODE.module()
    pixels = models.pixel_inputs((72, 40), 1, 1)["x"]

    def reconstruction() -> Tensor:
        generator = torch.Generator().manual_seed(3)
        made: Tensor = vae(pixels, sample_posterior=sample, generator=generator).sample
        return made

    plain = reconstruction()
    with hirescli.stream(vae, rows=16):
        made = reconstruction()
    assert_exact([made], [plain])


@torch.no_grad()
def test_sliced_batches_of_an_autoencoder() -> None:
    vae = models.autoencoder()
    vae.enable_slicing()
    inputs = models.latent_inputs(4)(SIZE, 2, 1)
    with hirescli.stream(vae, rows=4):
        made = vae.decode(**inputs).sample
    assert_exact([made], models.KL_DECODE.reference(inputs))


@torch.no_grad()
@pytest.mark.parametrize("store", [None, "device", "host", "disk"])
def test_exact_attention_of_an_autoencoder(store: str | None) -> None:
    vae: Any = models.KL_DECODE.module()
    inputs = models.latent_inputs(4)(LATENT_SIZES[2], 1, 1)
    with hirescli.stream(vae, rows=5, store=store, vae_attention="exact"):
        made = vae.decode(**inputs).sample
    assert_exact([made], models.KL_DECODE.reference(inputs))


@torch.no_grad()
def test_adapters_switched_between_calls() -> None:
    family = models.LORA
    unet: Any = models.lora_unet()
    inputs = family.inputs(SIZE, 1, 1)
    unet.disable_adapters()
    without = family.call(unet, inputs)
    unet.enable_adapters()
    with hirescli.stream(unet, rows=4):
        assert_exact(family.call(unet, inputs), family.reference(inputs))
        unet.disable_adapters()
        assert_exact(family.call(unet, inputs), without)


@torch.no_grad()
def test_large_mean_beside_small_deviation() -> None:
    """Moments taken as E[x^2] - E[x]^2 in float32 would lose all digits here."""
    unet: Any = models.sd15_unet()
    unet.conv_in.bias += 30.0
    double, inputs = copy.deepcopy(unet).double(), models.unet_inputs((16, 12), 1, 1)
    wanted = double(**models.in_dtype(inputs, torch.float64)).sample
    with hirescli.stream(unet, rows=3):
        made = unet(**inputs).sample
    plain = unet(**inputs).sample
    allowed = 1e-4 + 2 * float((plain - wanted).abs().max() / wanted.std())
    assert float((made - wanted).abs().max() / wanted.std()) <= allowed


@torch.no_grad()
@pytest.mark.slow
def test_moments_of_large_bands() -> None:
    """Of a million points, squares summed one by one in float32 lose four digits."""
    inputs = models.latent_inputs(4)((96, 96), 1, 1)
    vae: Any = models.KL_DECODE.module()
    with hirescli.stream(vae, rows=96):
        made = vae.decode(**inputs).sample
    assert_exact([made], models.KL_DECODE.reference(inputs))
