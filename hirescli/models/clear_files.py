"""What CLEAR's weights are for: as their name or their file says. No torch."""

from __future__ import annotations

from pathlib import Path

from hirescli.attention.clear_published import Variant, of_file, published
from hirescli.errors import RequestError
from hirescli.models.safetensors_check import read_tensors
from hirescli.planning.card import Card

_KEYS = ("clear_window", "clear_down_factor")  # in the metadata of files that are written here


def variant_of(path: Path) -> Variant | None:
    """The setting that a file was made for, from its metadata or its name.

    Raises:
        WeightsError: If it is damaged.
    """
    metadata = read_tensors(path).metadata
    words = [str(metadata.get(key, "")) for key in _KEYS]
    if all(word.isdecimal() and int(word) for word in words):
        return Variant(*map(int, words))
    return of_file(path.name)


def check_published(adapter: str, card: Card) -> None:
    """Refuse CLEAR's published weights for models that they were not made for.

    Args:
        adapter: What a user named.
        card: Of the model.

    Raises:
        RequestError: If it is a published name, and the model is no FLUX.1.
    """
    if card.family == "flux" or published(adapter) is None:
        return
    remedy = (
        "a .safetensors file with weights of CLEAR that were made for it"
        if card.is_transformer
        else "a folder or a hub id with LinFusion weights"
    )
    raise RequestError(
        f"adapter {adapter} was made for FLUX.1 and does not fit model `{card.name}`; leave "
        f"--adapter out, or give {remedy}"
    )
