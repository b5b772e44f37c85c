"""The text encoder: what is read of a long prompt, and that the word for the scale is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hirescli.models.builtin.text import TEXT_TOKENS, TextEncoder
from hirescli.models.registry import find_card

LONGEST = ", close view"


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder.load()


@settings(max_examples=40)
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(["mountains", "antidisestablishmentarianism", "dusk,", "ß", "雪山"]),
            st.text(max_size=12),
        ),
        max_size=70,
    )
)
def test_prompt_and_scale_word_fit(text: TextEncoder, words: list[str]) -> None:
    prompt = " ".join(words)
    made = text.scaled(prompt, LONGEST)
    assert made.endswith(LONGEST)
    assert prompt.startswith(made.removesuffix(LONGEST))
    assert text.token_count(made) + 2 <= TEXT_TOKENS


def test_short_prompt_is_kept_whole(text: TextEncoder) -> None:
    assert text.scaled("mountains at dusk", "") == "mountains at dusk"
    assert text.token_count("mountains at dusk") == 3  # the two marks do not count


def test_prompt_is_cut_behind_its_last_token(text: TextEncoder) -> None:
    fits = " ".join(["sea"] * text.prompt_tokens)
    assert text.token_count(fits) == text.prompt_tokens
    assert text.scaled(fits, LONGEST) == fits + LONGEST
    assert text.scaled(fits + " storm", LONGEST) == fits + LONGEST


@pytest.mark.parametrize("word", [word for _, word in find_card("builtin").scale_words])
def test_every_scale_word_of_the_card_fits(text: TextEncoder, word: str) -> None:
    assert text.prompt_tokens + text.token_count(word) <= TEXT_TOKENS - 2


def test_a_negative_prompt_is_cut_where_it_is_said_to_be(text: TextEncoder) -> None:
    fits = " ".join(["sea"] * text.negative_tokens)
    shorter = fits.removesuffix(" sea")
    with torch.no_grad():
        cut, kept, other = text.encode([fits + " storm", fits, shorter])
    assert torch.equal(cut, kept)
    assert not torch.equal(other, kept)


def test_states(text: TextEncoder) -> None:
    with torch.no_grad():
        states = text.encode(["", "a lake", "sea " * 500])
        alone = text.encode(["a lake"])
    assert states.shape == (3, TEXT_TOKENS, 384)
    assert bool(torch.isfinite(states).all())
    torch.testing.assert_close(states[1:2], alone, rtol=1e-4, atol=1e-5)


def test_the_scale_word_of_a_long_prompt_is_read(text: TextEncoder) -> None:
    with torch.no_grad():
        near, far = text.encode([text.scaled("sea " * 500, word) for word in (LONGEST, "")])
    assert float((near - far).abs().max()) > 0.1
