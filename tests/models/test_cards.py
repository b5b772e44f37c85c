"""The facts of the shipped cards against modules made from the packaged configs, no weights."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.embeddings import ImageProjection
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from hirescli.attention.linfusion import LinFusionAdapter
from hirescli.models import families
from hirescli.models.clip_tokenizer import packaged_tokenizer
from hirescli.models.families import CONFIGS, UNET_DEFAULTS, VAE_DEFAULTS
from hirescli.models.registry import cards, find_card
from hirescli.models.schedulers import SCHEDULERS, make_scheduler
from hirescli.models.sources import MID_DIM_SCALES
from hirescli.planning.card import Card

FAMILIES = ("sd15", "sd21", "sdxl")
# Published figures: numbers in the denoiser and the text encoders, and the strengths.
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd21": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}  # fmt: skip


def config(family: str, part: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((CONFIGS / family / part / "config.json").read_text())
    return read


def modules(family: str) -> dict[str, Any]:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config(family, "unet"))
        made: dict[str, Any] = {
            "unet": unet,
            "vae": AutoencoderKL.from_config(config(family, "vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**config(family, "text_encoder"))),
            "linfusion": LinFusionAdapter.for_unet(unet, mid_dim_scale=MID_DIM_SCALES[family]),
        }
        if family == "sdxl":
            second = CLIPTextConfig(**config(family, "text_encoder_2"))
            made["text_encoder_2"] = CLIPTextModelWithProjection(second)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_is_that_of_the_modules(family: str) -> None:
    card, made = find_card(family), modules(family)
    counted = {name: sum(p.numel() for p in m.parameters()) for name, m in made.items()}
    assert dict(card.parameters) == counted
    assert PUBLISHED[family].items() <= counted.items()
    unet, vae = made["unet"].config, made["vae"].config
    assert card.latent_channels == unet.in_channels == unet.out_channels == vae.latent_channels
    assert card.vae_factor == 2 ** (len(vae.block_out_channels) - 1)
    assert card.vae_scaling == vae.scaling_factor
    assert card.native_px == unet.sample_size * card.vae_factor == vae.sample_size
    assert card.text_channels == unet.cross_attention_dim
    assert card.vae_attention == vae.mid_block_add_attention
    assert card.vae_tiling == hasattr(made["vae"], "enable_tiling")
    widths = [m.config.hidden_size for n, m in made.items() if n.startswith("text_encoder")]
    assert card.text_channels == sum(widths)
    assert card.text_tokens == made["text_encoder"].config.max_position_embeddings


# Of the image encoders beside the published IP-Adapters, and the tokens that a picture becomes.
VIT_H = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14,
    "projection_dim": 1024,
}  # fmt: skip
VIT_BIG_G = {
    "hidden_size": 1664, "intermediate_size": 8192, "num_hidden_layers": 48, "patch_size": 14,
    "projection_dim": 1280,
}  # fmt: skip
ENCODERS = {"sd15": VIT_H, "sd21": VIT_H, "sdxl": VIT_BIG_G}
PICTURE_TOKENS = 4


@pytest.mark.parametrize("family", FAMILIES)
def test_image_prompts_take_what_their_modules_do(family: str) -> None:
    card, unet_config = find_card(family), config(family, "unet")
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**ENCODERS[family], num_attention_heads=16)
        )
        unet = UNet2DConditionModel.from_config(unet_config)
        text_channels = unet_config["cross_attention_dim"]
        projection = ImageProjection(
            image_embed_dim=encoder.config.projection_dim,
            cross_attention_dim=text_channels,
            num_image_text_embeds=PICTURE_TOKENS,
        )
    crossing = [m for n, m in unet.named_modules() if n.endswith("attn2")]
    keys_and_values = sum(2 * text_channels * m.to_k.out_features for m in crossing)
    adapter = keys_and_values + sum(p.numel() for p in projection.parameters())
    assert dict(card.image_prompts) == {
        "image_encoder": sum(p.numel() for p in encoder.parameters()),
        "image_adapter": adapter,
    }
    assert card.image_bytes("image_adapter", "bfloat16") == 2 * adapter
    assert card.image_bytes("image_adapter", "float32") == 4 * adapter


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_follow_from_numbers(family: str) -> None:
    card = find_card(family)
    files = sum(count for name, count in card.parameters if name != "linfusion")
    assert card.weights_bytes == pytest.approx(4 * files, rel=1e-3)
    assert card.component_bytes("unet", "bfloat16") == 2 * PUBLISHED[family]["unet"]
    resident = PUBLISHED[family]["unet"] + PUBLISHED[family]["vae"]
    resident += dict(card.parameters)["linfusion"]
    assert card.resident_bytes("bfloat16") == 2 * resident
    text = sum(n for name, n in PUBLISHED[family].items() if name.startswith("text_encoder"))
    assert card.process_bytes("bfloat16") == 600_000_000 + 2 * (resident + text)
    assert card.base_memory_bytes == pytest.approx(card.process_bytes(card.dtype), rel=1e-3)


def test_cards_of_the_families() -> None:
    transformers = ["flux-dev", "flux-schnell", "sd35-large", "sd35-medium"]
    assert sorted(card.name for card in cards()) == sorted(["builtin", *FAMILIES, *transformers])
    for card in map(find_card, FAMILIES):
        assert card.licence
        assert card.notice
        assert card.hub_id
        assert card.adapter_id
        assert card.vae_dtype in ("float32", "bfloat16")  # half precision overflows
        assert card.colour_anchor == "moments"
        assert set(card.schedulers) == set(SCHEDULERS) - {"flow-euler"}
    assert find_card("sd15").strengths == find_card("sd21").strengths == (0.4, 0.3, 0.2, 0.1)
    assert find_card("sdxl").strengths == (0.32, 0.24, 0.16, 0.08)
    for card in map(find_card, FAMILIES):  # of a schedule of 50, as published
        assert card.upscale_steps == tuple(round(50 * strength) for strength in card.strengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_gives_the_known_ids(family: str) -> None:
    tokenizer = packaged_tokenizer(CONFIGS / family / "tokenizer")
    ids = tokenizer("a photo of a cat").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A  photo\nOF a cat").input_ids == ids
    assert tokenizer("an astronaut riding a horse").input_ids[1:-1] == [
        550, 18376, 6765, 320, 4558
    ]  # fmt: skip
    padded = tokenizer("a cat", padding="max_length").input_ids
    assert len(padded) == tokenizer.model_max_length == 77
    # The second tokenizer of SDXL and that of 2.1 fill with "!", 1.5 with the end mark.
    assert padded[-1] == (0 if family == "sd21" else 49407)
    assert len(tokenizer) == config(family, "text_encoder")["vocab_size"]
    for text in ("雪山 🏔️", "e\u0301", "مرحبا", "\x00"):
        assert tokenizer.decode(tokenizer(text).input_ids[1:-1]) is not None


def test_the_second_tokenizer_of_sdxl() -> None:
    tokenizer = packaged_tokenizer(CONFIGS / "sdxl" / "tokenizer_2")
    assert tokenizer("a cat", padding="max_length").input_ids[-1] == 0


@pytest.mark.parametrize(
    ("defaults", "kind"),
    [(UNET_DEFAULTS, UNet2DConditionModel), (VAE_DEFAULTS, AutoencoderKL)],
)
def test_defaults_are_those_of_diffusers(defaults: dict[str, Any], kind: Any) -> None:
    parameters = inspect.signature(kind.__init__).parameters
    for key, value in defaults.items():
        assert parameters[key].default == value, key


def test_a_config_that_says_its_defaults_is_the_same() -> None:
    said = config("sd15", "unet")
    more = said | {"dropout": 0.0, "_diffusers_version": "0.6.0", "class_embed_type": None}
    more |= {"use_linear_projection": False, "sample_size": 32}
    structure = families.structure
    assert structure(said, UNET_DEFAULTS) == structure(more, UNET_DEFAULTS)
    other = said | {"layers_per_block": 3}
    assert structure(said, UNET_DEFAULTS) != structure(other, UNET_DEFAULTS)


def test_latents_are_never_clipped() -> None:
    """PNDM's config says nothing of clipping, and DDIM's default is to clip."""
    saved = dict(PNDMScheduler(beta_schedule="scaled_linear").config)
    assert "clip_sample" not in saved
    assert make_scheduler("ddim", saved).config.clip_sample is False


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.name)
def test_cards_can_be_keys(card: Card) -> None:
    assert {card: 1}[card] == 1
