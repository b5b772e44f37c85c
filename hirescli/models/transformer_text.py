"""Prompts of FLUX and SD3: states of T5, and pooled ones of CLIP, by diffusers' own encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hirescli.errors import RunError
from hirescli.models.quiet import quiet_libraries

_CLIP_TOKENS = 77  # that SD3 has beside those of T5
_SD3_KEYS = (
    "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)  # fmt: skip
_MARK = 1  # that T5's tokenizer puts behind every text


class TransformerText:
    """Prompts of one model.

    Args:
        family: "flux" or "sd3".
        components: Tokenizers and text encoders by their names in a pipeline; the last is T5's.
        tokens: Of the states that the denoiser reads.
    """

    def __init__(self, family: str, components: dict[str, Any], *, tokens: int) -> None:
        self.family, self.components = family, dict(components)
        self._t5_tokens = tokens - (_CLIP_TOKENS if family == "sd3" else 0)
        self._known: dict[tuple[str, str], dict[str, Tensor]] = {}

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt that T5 reads besides its mark."""
        return self._t5_tokens - _MARK

    @property
    def negative_tokens(self) -> int:
        """Tokens of a negative prompt that T5 reads besides its mark."""
        return self.prompt_tokens

    def token_count(self, text: str) -> int:
        """Tokens of a text, uncut, the mark not counted."""
        last = "tokenizer_2" if self.family == "flux" else "tokenizer_3"
        tokens = self.components[last](text, truncation=False, verbose=False)
        return len(tokens.input_ids) - _MARK

    def scaled(self, prompt: str, scale_word: str) -> str:
        """The prompt with the word behind it; cards of these families have none."""
        return prompt + scale_word

    @torch.no_grad()
    def encode(self, prompt: str, negative: str) -> dict[str, Tensor]:
        """States (1, tokens, channels) and pooled ones (1, channels); of both texts for SD3.

        Raises:
            RunError: If the text encoders were freed before these texts were encoded.
        """
        key = prompt, negative
        if key not in self._known:
            if self.components["text_encoder"] is None:
                raise RunError("a prompt is to be encoded after the text encoders were freed")
            with quiet_libraries():
                self._known[key] = self._encoded(prompt, negative)
        return dict(self._known[key])

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States (B, tokens, channels) and pooled ones (B, channels); none of them are kept."""
        with quiet_libraries():
            if self.family == "flux":
                states, pooled, _ = self._asked(prompt=list(texts))
            else:
                states, _, pooled, _ = self._asked(
                    prompt=list(texts), prompt_3=None, do_classifier_free_guidance=False
                )
        return states, pooled

    def _encoded(self, prompt: str, negative: str) -> dict[str, Tensor]:
        if self.family == "flux":  # without guidance by a second call, nothing is to be avoided
            states, pooled, _ = self._asked(prompt=prompt)
            return {"prompt_embeds": states, "pooled_prompt_embeds": pooled}
        made = self._asked(
            prompt=prompt, prompt_3=None, negative_prompt=negative,
            do_classifier_free_guidance=True,
        )  # fmt: skip
        return dict(zip(_SD3_KEYS, made, strict=True))

    def _asked(self, **given: Any) -> Any:
        """What the pipeline's own `encode_prompt` gives."""
        return self.pipeline().encode_prompt(
            prompt_2=None, device=self.components["text_encoder"].device,
            num_images_per_prompt=1, max_sequence_length=self._t5_tokens, **given,
        )  # fmt: skip

    def pipeline(self, **modules: Any) -> Any:
        """The family's text-to-image pipeline of the text encoders and other modules."""
        from diffusers import FluxPipeline, StableDiffusion3Pipeline

        kind = FluxPipeline if self.family == "flux" else StableDiffusion3Pipeline
        others: dict[str, Any] = {"vae": None, "transformer": None, "scheduler": None}
        return kind(**self.components, **others | modules)

    def free(self) -> None:
        """Let the text encoders go; what was encoded before is still known."""
        for name in self.components:
            if name.startswith("text_encoder"):
                self.components[name] = None
