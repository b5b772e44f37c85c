"""Which models there are, and their cards. No torch: `hires plan` reads this."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hirescli.errors import RequestError
from hirescli.planning.card import Card, read_card

_CARDS = Path(__file__).parent / "cards"


@lru_cache(maxsize=1)
def cards() -> tuple[Card, ...]:
    """The cards of all models that this version can run, sorted by name."""
    return tuple(read_card(path) for path in sorted(_CARDS.glob("*.toml")))


def find_card(model: str) -> Card:
    """The card of a model.

    Args:
        model: The name of a shipped card, such as "builtin".

    Raises:
        RequestError: If there is no such model in this version.
    """
    for card in cards():
        if card.name == model:
            return card
    names = ", ".join(f"`{card.name}`" for card in cards())
    raise RequestError(
        f'model "{model}" is not available: this version runs {names} only; '
        "leave --model out to use it"
    )
