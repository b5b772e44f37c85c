"""What a command computes on: the device and the threads that were asked for."""

from __future__ import annotations

import os

from hirescli.errors import RequestError


def check_words(**said: tuple[str | None, tuple[str, ...]]) -> None:
    """Refuse what is none of the words that there are for an option.

    Args:
        said: By the option's name: what was given, None for nothing, and what there is.

    Raises:
        RequestError: Naming the first.
    """
    for name, (value, known) in said.items():
        if value is not None and value not in known:
            raise RequestError(f'--{name} "{value}" is not known; give {" or ".join(known)}')


def found_device(asked: str | None) -> str:
    """The device that was asked for, "cpu" or "cuda"; None: what there is.

    Raises:
        RequestError: If it is another word, or there is no GPU.
    """
    check_words(device=(asked, ("cpu", "cuda")))
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: PyTorch finds no GPU here; leave it out")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def set_threads(threads: int | None) -> None:
    """Compute with so many threads; None: one per core."""
    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
