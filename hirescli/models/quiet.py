"""The libraries' own reports and bars, kept away while they load and encode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own reports and bars away, and leave their settings as they were."""
    loggings: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggings]
    for each in loggings:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, (verbosity, bars) in zip(loggings, before, strict=True):
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()
