"""Prompts as the denoiser reads them, with one face for all families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hirescli.errors import RunError
from hirescli.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from hirescli.models.builtin.text import TextEncoder

_MARKS = 2  # that a tokenizer puts around every text
_SDXL_KEYS = (
    "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)  # fmt: skip


class PromptEncoder(Protocol):
    """Tokenizers and text encoders of one model."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt that are read besides marks and scale word."""

    @property
    def negative_tokens(self) -> int:
        """Tokens of a negative prompt that are read besides marks."""

    def token_count(self, text: str) -> int:
        """Tokens of a text, uncut, marks not counted."""

    def scaled(self, prompt: str, scale_word: str) -> str:
        """The prompt, cut to what is read of it if a word for the scale goes behind it."""

    def encode(self, prompt: str, negative: str) -> dict[str, Tensor]:
        """Keyword arguments for the family's pipelines: states (1, tokens, channels)."""

    def free(self) -> None:
        """Let the text encoders go; what was encoded before is still known."""


class BuiltinText:
    """Prompts of the built-in model.

    Args:
        encoder: Tokenizer and text encoder.
        dtype: Of the states that `encode` gives.
    """

    def __init__(self, encoder: TextEncoder, dtype: torch.dtype) -> None:
        self.encoder, self.dtype = encoder, dtype

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt that are read besides the two marks and the scale word."""
        return self.encoder.prompt_tokens

    @property
    def negative_tokens(self) -> int:
        """Tokens of a negative prompt that are read besides the two marks."""
        return self.encoder.negative_tokens

    def token_count(self, text: str) -> int:
        """Tokens of a text, uncut, the two marks not counted."""
        return self.encoder.token_count(text)

    def scaled(self, prompt: str, scale_word: str) -> str:
        """The prompt, cut to what is read of it, with the word for the scale behind it."""
        return self.encoder.scaled(prompt, scale_word)

    @torch.no_grad()
    def encode(self, prompt: str, negative: str) -> dict[str, Tensor]:
        """States (1, 48, 384) of both texts."""
        states = self.encoder.encode([prompt, negative]).to(self.dtype)
        return {"prompt_embeds": states[:1], "negative_prompt_embeds": states[1:]}

    def free(self) -> None:
        """Nothing: the encoder is small, and another picture needs it again."""


class ClipText:
    """Prompts of Stable Diffusion: diffusers' own encoding.

    Args:
        family: "sd" or "sdxl".
        components: ``tokenizer``, ``text_encoder`` and, for SDXL, the same with ``_2``.
        force_zeros: Whether SDXL reads zeros where there is no negative prompt.
    """

    def __init__(
        self, family: str, components: dict[str, Any], *, force_zeros: bool = True
    ) -> None:
        self.family, self.components = family, dict(components)
        self.force_zeros = force_zeros
        self._known: dict[tuple[str, str], dict[str, Tensor]] = {}

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt that are read besides the two marks."""
        return int(self.components["tokenizer"].model_max_length) - _MARKS

    @property
    def negative_tokens(self) -> int:
        """Tokens of a negative prompt that are read besides the two marks."""
        return self.prompt_tokens

    def token_count(self, text: str) -> int:
        """Tokens of a text, uncut, the two marks not counted."""
        tokens = self.components["tokenizer"](text, truncation=False, verbose=False)
        return len(tokens.input_ids) - _MARKS

    def scaled(self, prompt: str, scale_word: str) -> str:
        """The prompt with the word behind it; cards of these families have none."""
        return prompt + scale_word

    @torch.no_grad()
    def encode(self, prompt: str, negative: str) -> dict[str, Tensor]:
        """States (1, 77, channels) of both texts; pooled ones (1, channels) beside for SDXL.

        An empty negative prompt is none, as in diffusers.

        Raises:
            RunError: If the text encoders were freed before these texts were encoded.
        """
        key = prompt, negative
        if key not in self._known:
            if self.components["text_encoder"] is None:
                raise RunError("a prompt is to be encoded after the text encoders were freed")
            self._known[key] = self._encoded(prompt, negative)
        return dict(self._known[key])

    def _encoded(self, prompt: str, negative: str) -> dict[str, Tensor]:
        with quiet_libraries():
            states = self.pipeline().encode_prompt(
                prompt=prompt,
                negative_prompt=negative or None,
                device=self.components["text_encoder"].device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
            )
        keys = _SDXL_KEYS if self.family == "sdxl" else _SDXL_KEYS[:2]
        return dict(zip(keys, states, strict=True))

    def pipeline(self, **modules: Any) -> Any:
        """The family's text-to-image pipeline of the text encoders and other modules."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        others = {"vae": None, "unet": None, "scheduler": None} | modules
        if self.family == "sdxl":
            return StableDiffusionXLPipeline(
                **self.components, **others, add_watermarker=False,
                force_zeros_for_empty_prompt=self.force_zeros,
            )  # fmt: skip
        return StableDiffusionPipeline(
            **self.components, **others, safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip

    def free(self) -> None:
        """Let the text encoders go; what was encoded before is still known."""
        for name in self.components:
            if name.startswith("text_encoder"):
                self.components[name] = None
