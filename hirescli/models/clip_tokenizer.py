"""CLIP's tokenizer from the merges that the package carries: 49,408 tokens.

References:
    Learning Transferable Visual Models From Natural Language Supervision,
    https://arxiv.org/abs/2103.00020
"""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

_MERGES = Path(__file__).parent / "configs" / "clip" / "merges.txt.gz"
_MARKS = ("<|startoftext|>", "<|endoftext|>")
# Bytes that are printable in Latin-1 stand for themselves; the others follow behind them.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_END = "</w>"  # a token that ends a word


def packaged_tokenizer(folder: Path) -> Any:
    """The tokenizer with the marks and the length of `folder`'s ``tokenizer_config.json``."""
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("tokenizer_class", None)
    vocabulary, merges = _vocabulary()
    pairs: Any = list(merges)  # as the backend takes them; its hints say text
    return CLIPTokenizer(vocab=dict(vocabulary), merges=pairs, **config)


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of all tokens (bytes, bytes that end a word, merges, marks), and the merges in order."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    others = len(set(range(256)) - set(_PRINTABLE))
    letters = [chr(code) for code in (*_PRINTABLE, *range(256, 256 + others))]
    words = [*letters, *(letter + _END for letter in letters), *map("".join, merges), *_MARKS]
    return {word: number for number, word in enumerate(words)}, merges
